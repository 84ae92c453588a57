"""Limits how many requests and tokens the engine holds at once; refused requests are not queued here.

vLLM's scheduler is the queue of those that are admitted.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.errors import OverloadedError

LONGEST_WAIT = 60
"""Upper limit of `Retry-After`, in seconds; older releases are ignored."""
REMEMBERED = 256
"""Releases from which the rate is estimated."""


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

    Used from one event loop only.
    """

    def __init__(self, max_requests: int, max_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = Work(max_requests, max_tokens)
        self.held = Work(0, 0)
        self.admitted = 0
        self.refused = 0
        self._clock = clock
        self._began: dict[object, float] = {}
        self._released: deque[tuple[float, Work]] = deque(maxlen=REMEMBERED)

    @contextmanager
    def admit(self, tokens: int, requests: int = 1) -> Iterator[None]:
        """Around the work of `requests` sequences that may reach `tokens` in total; raises OverloadedError."""
        work, ticket = Work(requests, tokens), object()
        self._check(work)
        self.held += work
        self.admitted += 1
        self._began[ticket] = self._clock()
        try:
            yield
        finally:
            self.held -= work
            del self._began[ticket]
            self._released.append((self._clock(), work))

    def _check(self, work: Work) -> None:
        excess = self.held + work - self.limit
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
