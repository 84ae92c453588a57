"""Answers a repeated request with the first one's answer, without a second run."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

from cachetools import TTLCache

from common.errors import RequestError

T = TypeVar("T")


class RememberedRound(NamedTuple, Generic[T]):
    """The digest of the request under a key, and the future of its answer, which is cancelled if the run fails."""

    digest: bytes
    answer: "asyncio.Future[T]"


class Replays(Generic[T]):
    """Remembers the answers of the last `count` keys for `seconds`. Used from one event loop only."""

    def __init__(self, count: int = 4096, seconds: float = 60.0) -> None:
        self._entries: TTLCache[Hashable, RememberedRound[T]] = TTLCache(count, seconds)

    async def once(self, key: Hashable, digest: bytes, run: Callable[[], Awaitable[T]]) -> T:
        """The answer of `run`, or of the earlier run under `key`, which a repeat also waits for.

        A run that fails or is cancelled is not remembered: one of those that waited for it runs again. `digest` tells
        requests apart; raises RequestError if `key` was used with another one.
        """
        while (entry := self._entries.get(key)) is not None:
            if entry.digest != digest:
                raise RequestError("idempotency_key was used for another round", param="idempotency_key")
            await asyncio.wait([entry.answer])
            if not entry.answer.cancelled():
                return entry.answer.result()
        entry = self._entries[key] = RememberedRound(digest, asyncio.get_running_loop().create_future())
        try:
            result = await run()
        except BaseException:
            if self._entries.get(key) is entry:
                del self._entries[key]
            entry.answer.cancel()
            raise
        entry.answer.set_result(result)
        return result
