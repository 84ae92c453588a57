"""Gives a round that is sent again the answer it had, without running it twice. Knows nothing of what a round is."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

from cachetools import TTLCache

from common.errors import RequestError

T = TypeVar("T")


class RememberedRound(NamedTuple, Generic[T]):
    """What was asked under a key, and its answer; cancelled if there will be none."""

    asked: bytes
    answer: "asyncio.Future[T]"


class Replays(Generic[T]):
    """The answers of the last `count` keys, for `seconds` each. Used from one event loop only."""

    def __init__(self, count: int = 4096, seconds: float = 60.0) -> None:
        self._entries: TTLCache[Hashable, RememberedRound[T]] = TTLCache(count, seconds)

    async def once(self, key: Hashable, asked: bytes, run: Callable[[], Awaitable[T]]) -> T:
        """What `run` answers, now or when `key` was first seen; a repeat joins a run that is still under way.

        A run that fails or is cancelled leaves nothing: whoever waited for it runs anew. Raises RequestError if `key`
        was used to ask something else.
        """
        while (entry := self._entries.get(key)) is not None:
            if entry.asked != asked:
                raise RequestError("idempotency_key was used for another round", param="idempotency_key")
            await asyncio.wait([entry.answer])
            if not entry.answer.cancelled():
                return entry.answer.result()
        entry = self._entries[key] = RememberedRound(asked, asyncio.get_running_loop().create_future())
        try:
            result = await run()
        except BaseException:
            if self._entries.get(key) is entry:
                del self._entries[key]
            entry.answer.cancel()
            raise
        entry.answer.set_result(result)
        return result
