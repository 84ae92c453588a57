"""Lends llama.cpp's sequences to requests: a queue with limits, and a choice among the free ones."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext

from common.config_edge import LimitsConfig
from common.decoding.progress import Progress, current_progress, waiting
from common.errors import ContextLengthError, OverloadedError
from common.fair_queue import Turns, WeightOf, equal_weights, may_wait
from common.http.request_context import current_priority, current_tenant
from common.queueing import QueueBound, Work, WorkUnderWay

STANDING_TURNS = 1.5
"""How many answers one of a standing queue waits for at most."""


class SequencePool:
    """Lends sequence ids 0 to `sequences` - 1, one owner each, in the order of a FairQueue; used in the event loop.

    A request is that of `current_tenant`, with `current_priority`.
    """

    def __init__(
        self,
        sequences: int,
        limits: LimitsConfig,
        weight: WeightOf = equal_weights,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sequences = sequences
        self._limits = limits
        self._bound = QueueBound(limits.max_queue, int(STANDING_TURNS * sequences))
        self._free = list(range(sequences))
        """Ids without an owner, the least recently used first."""
        self._weight = weight
        self._turns = Turns(sequences, weight, self._bound.record_turn)
        self._lent = WorkUnderWay(clock)
        self._holders: dict[int, Progress | None] = {}
        """Of the answers that have a sequence, by its id; None: nobody watches it."""
        self._admitted = {False: Counter[str](), True: Counter[str]()}
        """Requests that have a sequence, wait for one, or have been promised one: batches or not, by tenant."""
        self._tokens = 0
        """Their prompt tokens."""

    @contextmanager
    def admit(self, requests: int, tokens: int) -> Iterator[None]:
        """Around `requests` at once that borrow with `admitted`, with prompts of `tokens` tokens in all.

        Raises OverloadedError if the limits for waiting requests or for tokens are reached, ContextLengthError for more
        tokens than are ever admitted.
        """
        tenant, batch = current_tenant.get(), current_priority.get() > 0
        self._check(requests, tokens, tenant, batch)
        self._admitted[batch][tenant] += requests
        self._tokens += tokens
        try:
            yield
        finally:
            self._admitted[batch][tenant] -= requests
            self._tokens -= tokens

    @asynccontextmanager
    async def lend(self, tokens: int, reusable: Callable[[int], int], admitted: bool = False) -> AsyncIterator[int]:
        """Lends a free sequence to a request with a prompt of `tokens` tokens; admits it, if nobody has.

        Takes the id with the most `reusable` tokens; of equal ones first a neighbour of ids in use, then the least
        recently used. Raises OverloadedError as `admit` does.
        """
        with nullcontext() if admitted else self.admit(1, tokens):
            await self._wait_for_turn()
            lent = max(self._free, key=lambda free: (reusable(free), self._has_busy_neighbour(free)))
            self._free.remove(lent)
            self._holders[lent] = current_progress.get()
            try:
                with self._lent.holding(Work(1, tokens)):
                    yield lent
            finally:
                del self._holders[lent]
                self._free.append(lent)
                self._turns.free()

    async def until_idle(self) -> None:
        """Returns as soon as a sequence is free, for which nobody waits; lends none."""
        await self._turns.until_idle()

    def stats(self) -> dict[str, int]:
        lent = self._sequences - len(self._free)
        return {
            "sequences": self._sequences,
            "sequences_lent": lent,
            "waiting": len(self._turns),
            "prompt_tokens_now": self._tokens,
        }

    def _check(self, requests: int, tokens: int, tenant: str, batch: bool) -> None:
        if 0 < self._limits.max_tokens_total < tokens:
            limit = self._limits.max_tokens_total
            raise ContextLengthError(
                f"a request of {tokens} tokens exceeds the edge's limit of {limit} for all at once"
            )
        admitted = self._admitted[True] + self._admitted[False]
        waiting = max(0, admitted.total() - self._sequences)
        self._bound.record_turn(self._admitted[False].total() - self._sequences, 0)  # batches may wait for long
        places = self._sequences + self._bound.places
        before = admitted if batch else self._admitted[False]  # others overtake batches
        excess = Work(requests + before.total() - places, self._tokens + tokens - self._limits.max_tokens_total)
        if not may_wait(requests, places, before, tenant, self._weight):
            after = self._lent.seconds_until(Work(excess.requests, 0))
            raise OverloadedError(f"the queue is full: {waiting} requests wait already", retry_after=after)
        if self._limits.max_tokens_total > 0 and excess.tokens > 0:
            raise OverloadedError(
                f"too many tokens: {self._tokens} in progress, {tokens} more exceed the limit of "
                f"{self._limits.max_tokens_total}",
                retry_after=self._lent.seconds_until(Work(0, excess.tokens)),
            )

    async def _wait_for_turn(self) -> None:
        with waiting("a free sequence of the edge's model", self._signs_of_holders):
            await self._turns.take()

    def _signs_of_holders(self) -> object:
        """Another value whenever there was work on an answer that has a sequence."""
        return [(lent, time.monotonic() if holder is None else holder.mark()) for lent, holder in self._holders.items()]

    def _has_busy_neighbour(self, free: int) -> bool:
        """Whether at least two ids are lent and one is next to `free`: llama.cpp decodes neighbours in one batch."""
        lent = set(range(self._sequences)).difference(self._free)
        return len(lent) > 1 and not lent.isdisjoint((free - 1, free + 1))
