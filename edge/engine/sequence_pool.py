"""Who has which sequence, who waits for one, and who is turned away. Knows no model; belongs to the event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from common.config_schema import LimitsConfig
from common.errors import OverloadedError


class Leases:
    """Lends sequence ids 0 to `sequences` - 1, one owner each, in the order of asking, within `limits`."""

    def __init__(self, sequences: int, limits: LimitsConfig) -> None:
        self._sequences = sequences
        self._limits = limits
        self._free = list(range(sequences))
        """Ids without an owner, the longest unused first."""
        self._room = asyncio.Semaphore(sequences)
        self._waiting = 0
        self._tokens = 0
        """Tokens of the prompts of those who have a sequence or wait for one."""

    @asynccontextmanager
    async def lend(self, tokens: int, worth: Callable[[int], int]) -> AsyncIterator[int]:
        """Lends the free id that is worth most to a prompt of `tokens`; raises OverloadedError instead of a long wait.

        Of ids worth the same the longest unused is lent; once some are lent, of those beside them.
        """
        self._admit(tokens)
        self._tokens += tokens
        try:
            await self._turn()
            lent = max(self._free, key=lambda free: (worth(free), self._fits_in(free)))
            self._free.remove(lent)
            try:
                yield lent
            finally:
                self._free.append(lent)
                self._room.release()
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
        if self._room.locked() and self._waiting >= self._limits.max_queue:
            raise OverloadedError(f"{self._waiting} requests wait already, which is as many as may")
        if 0 < self._limits.max_tokens_total < self._tokens + tokens:
            raise OverloadedError(f"{self._tokens} tokens are being worked on; {tokens} more are too many")

    async def _turn(self) -> None:
        self._waiting += 1
        try:
            await self._room.acquire()
        finally:
            self._waiting -= 1

    def _fits_in(self, free: int) -> bool:
        """Whether a neighbour is lent, of three or more: llama.cpp decodes neighbours together, others one by one."""
        lent = set(range(self._sequences)).difference(self._free)
        return len(lent) > 1 and not lent.isdisjoint((free - 1, free + 1))
