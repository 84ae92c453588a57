"""Lends llama.cpp's sequences to requests: a queue with limits, and a choice among the free ones."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from common.config_edge import LimitsConfig
from common.errors import OverloadedError


class SequencePool:
    """Lends sequence ids 0 to `sequences` - 1, one owner each, first come, first served; used in the event loop."""

    def __init__(self, sequences: int, limits: LimitsConfig) -> None:
        self._sequences = sequences
        self._limits = limits
        self._free = list(range(sequences))
        """Ids without an owner, the least recently used first."""
        self._semaphore = asyncio.Semaphore(sequences)
        self._waiting = 0
        self._tokens = 0
        """Prompt tokens of all requests that have a sequence or wait for one."""

    @asynccontextmanager
    async def lend(self, tokens: int, reusable: Callable[[int], int]) -> AsyncIterator[int]:
        """Lends a free sequence to a request with a prompt of `tokens` tokens.

        Takes the id with the most `reusable` tokens; of equal ones first a neighbour of ids in use, then the least
        recently used. Raises OverloadedError if the limits for waiting requests or for tokens are reached.
        """
        self._admit(tokens)
        self._tokens += tokens
        try:
            await self._wait_for_turn()
            lent = max(self._free, key=lambda free: (reusable(free), self._has_busy_neighbour(free)))
            self._free.remove(lent)
            try:
                yield lent
            finally:
                self._free.append(lent)
                self._semaphore.release()
        finally:
            self._tokens -= tokens

    def stats(self) -> dict[str, int]:
        lent = self._sequences - len(self._free)
        return {
            "sequences": self._sequences,
            "sequences_lent": lent,
            "waiting": self._waiting,
            "prompt_tokens_now": self._tokens,
        }

    def _admit(self, tokens: int) -> None:
        if self._semaphore.locked() and self._waiting >= self._limits.max_queue:
            raise OverloadedError(f"the queue is full: {self._waiting} requests wait already")
        if 0 < self._limits.max_tokens_total < self._tokens + tokens:
            raise OverloadedError(
                f"too many tokens: {self._tokens} in progress, {tokens} more exceed the limit of "
                f"{self._limits.max_tokens_total}"
            )

    async def _wait_for_turn(self) -> None:
        self._waiting += 1
        try:
            await self._semaphore.acquire()
        finally:
            self._waiting -= 1

    def _has_busy_neighbour(self, free: int) -> bool:
        """Whether at least two ids are lent and one is next to `free`: llama.cpp decodes neighbours in one batch."""
        lent = set(range(self._sequences)).difference(self._free)
        return len(lent) > 1 and not lent.isdisjoint((free - 1, free + 1))
