"""Limits how many requests and tokens the engine holds at once; refused requests are not queued here.

vLLM's scheduler is the queue of those that are admitted. A burst may fill it; one that does not empty is kept short.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.errors import OverloadedError
from common.queueing import QueueBound

LONGEST_WAIT = 60
"""Upper limit of `Retry-After`, in seconds; older releases are ignored."""
REMEMBERED = 256
"""Releases from which the rate is estimated."""
STANDING_TURNS = 0.25
"""How many answers one of a standing queue waits for. Fewer than at the edge: an edge that is refused goes on alone, or
asks another cloud."""


@dataclass(frozen=True, slots=True)
class Work:
    """A number of requests and a number of tokens."""

    requests: int
    tokens: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.requests + other.requests, self.tokens + other.tokens)

    def __sub__(self, other: "Work") -> "Work":
        return Work(self.requests - other.requests, self.tokens - other.tokens)


class Admission:
    """Admits work up to `max_requests` and `max_tokens`; a larger request is admitted when nothing else runs.

    `at_once`: how many requests the engine computes at once (None: all); the others wait. Used from one event loop
    only.
    """

    def __init__(
        self,
        max_requests: int,
        max_tokens: int,
        at_once: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = Work(max_requests, max_tokens)
        self._at_once = max_requests if at_once is None else min(at_once, max_requests)
        self._bound = QueueBound(max_requests - self._at_once, max(1, int(STANDING_TURNS * self._at_once)))
        self.held = Work(0, 0)
        self.admitted = 0
        self.refused = 0
        self._clock = clock
        self._began: dict[object, float] = {}
        self._released: deque[tuple[float, Work]] = deque(maxlen=REMEMBERED)

    @contextmanager
    def admit(self, tokens: int, requests: int = 1, begun: bool = False) -> Iterator[None]:
        """Around the work of `requests` sequences that may reach `tokens` in total; raises OverloadedError.

        `begun`: a part of an answer that was admitted before, which a standing queue does not keep out.
        """
        work, ticket = Work(requests, tokens), object()
        self._check(work, self.limit if begun else self._limit_now)
        self.held += work
        self.admitted += 1
        self._began[ticket] = self._clock()
        try:
            yield
        finally:
            self._bound.record_turn(self._waiting, requests)
            self.held -= work
            del self._began[ticket]
            self._released.append((self._clock(), work))

    def check_room(self) -> None:
        """Raises OverloadedError where the smallest request has no room: so the others need not be read."""
        self._check(Work(1, 1), self._limit_now)

    @property
    def _waiting(self) -> int:
        return self.held.requests - self._at_once

    @property
    def _limit_now(self) -> Work:
        """For what has not begun."""
        self._bound.record_turn(self._waiting, 0)
        return Work(self._at_once + self._bound.places, self.limit.tokens)

    def _check(self, work: Work, limit: Work) -> None:
        excess = self.held + work - limit
        if self._began and (excess.requests > 0 or excess.tokens > 0):
            self.refused += 1
            raise OverloadedError(
                f"no room: {self.held.requests} requests with {self.held.tokens} tokens are running",
                retry_after=self._retry_after(excess),
            )

    def _retry_after(self, excess: Work) -> int:
        """Whole seconds until `excess` is released, at the rate of the last releases.

        Without enough releases for a rate: as long as the oldest work has already taken.
        """
        now = self._clock()
        while self._released and now - self._released[0][0] > LONGEST_WAIT:
            self._released.popleft()
        seconds = now - next(iter(self._began.values()))
        if len(self._released) > 1:
            since = now - self._released[0][0]
            freed = [work for _, work in self._released][1:]  # the first one only marks the start of the time
            seconds = max(
                since * max(excess.requests, 0) / max(sum(work.requests for work in freed), 1),
                since * max(excess.tokens, 0) / max(sum(work.tokens for work in freed), 1),
            )
        return min(max(math.ceil(seconds), 1), LONGEST_WAIT)
