"""Limits how many requests and tokens are taken at once, a share for each tenant; others are refused.

Those that are taken wait for the engine in `engine_turns.py`. A burst may fill that queue; one that does not empty is
kept short.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from common.errors import OverloadedError
from common.fair_queue import WeightOf, equal_weights, may_wait
from common.http.request_context import current_priority, current_tenant
from common.queueing import NOTHING, QueueBound, Work, WorkUnderWay

STANDING_TURNS = 0.25
"""How many answers one of a standing queue waits for. Fewer than at the edge: an edge that is refused goes on alone, or
asks another cloud."""


class Admission:
    """Admits work up to `max_requests` and `max_tokens`; a larger request is admitted when nothing else runs.

    `at_once`: how many requests the engine computes at once (None: all); the others wait, `waiting` tells how many that
    are no batches. Where others hold so much, a tenant is still admitted up to its share (`may_wait`), and batches keep
    out batches only. A request is that of `current_tenant`, with `current_priority`. Used from one event loop only.
    """

    def __init__(
        self,
        max_requests: int,
        max_tokens: int,
        at_once: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        weight: WeightOf = equal_weights,
        waiting: Callable[[], int] = lambda: 0,
    ) -> None:
        self.limit = Work(max_requests, max_tokens)
        self._at_once = max_requests if at_once is None else min(at_once, max_requests)
        self._bound = QueueBound(max_requests - self._at_once, max(1, int(STANDING_TURNS * self._at_once)))
        self._under_way = WorkUnderWay(clock)
        self._weight = weight
        self._waiting = waiting
        self._held_by: dict[bool, dict[str, Work]] = {batch: defaultdict(lambda: NOTHING) for batch in (False, True)}
        """By tenant: of batches (True), and of all others."""
        self.admitted = 0
        self.refused = 0

    @property
    def held(self) -> Work:
        """What is admitted now."""
        return self._under_way.held

    @contextmanager
    def admit(self, tokens: int, requests: int = 1, begun: bool = False) -> Iterator[None]:
        """Around the work of `requests` sequences that may reach `tokens` in total; raises OverloadedError.

        `begun`: a part of an answer that was admitted before, which a standing queue does not keep out.
        """
        work = Work(requests, tokens)
        tenant, batch = current_tenant.get(), current_priority.get() > 0
        self._check(work, self.limit if begun else self._limit_now, tenant, batch)
        self._held_by[batch][tenant] += work
        self.admitted += 1
        with self._under_way.holding(work):
            try:
                yield
            finally:
                if not begun and not batch:
                    self._bound.record_turn(self._waiting(), requests)
                self._held_by[batch][tenant] -= work

    def check_room(self) -> None:
        """Raises OverloadedError where the smallest request has no room: so the others need not be read."""
        self._check(Work(1, 1), self._limit_now, current_tenant.get(), batch=False)

    @property
    def _limit_now(self) -> Work:
        """For what has not begun."""
        self._bound.record_turn(self._waiting(), 0)
        return Work(self._at_once + self._bound.places, self.limit.tokens)

    def _check(self, work: Work, limit: Work, tenant: str, batch: bool) -> None:
        if self.held.requests and not self._has_room(work, limit, tenant, batch):
            excess = self.held + work - limit
            self.refused += 1
            raise OverloadedError(
                f"no room: {self.held.requests} requests with {self.held.tokens} tokens are running",
                retry_after=self._under_way.seconds_until(excess),
            )

    def _has_room(self, work: Work, limit: Work, tenant: str, batch: bool) -> bool:
        taken = dict(self._held_by[False])
        for name, held in self._held_by[True].items() if batch else ():  # others overtake batches
            taken[name] = taken.get(name, NOTHING) + held

        def may_have(more: int, places: int, taken: Mapping[str, int]) -> bool:
            return may_wait(more, places, taken, tenant, self._weight)

        requests = {name: held.requests for name, held in taken.items()}
        tokens = {name: held.tokens for name, held in taken.items()}
        return may_have(work.requests, limit.requests, requests) and may_have(work.tokens, limit.tokens, tokens)
