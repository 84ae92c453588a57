"""How many requests may wait, and for how long: a burst fills a queue, one that does not empty is kept short."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LONGEST_WAIT = 60
"""Upper limit of `Retry-After`, in seconds; older releases are ignored."""
REMEMBERED = 256
"""Releases from which the rate is estimated."""


@dataclass
class QueueBound:
    """`longest` may wait in a burst. Each turn that leaves others waiting takes a place away, down to `standing`.

    A queue that never empties makes every answer late and none sooner (CoDel, Nichols and Jacobson 2012). How long that
    takes is counted in turns: a second is long for a small model, and for a large one no answer ends in it.
    """

    longest: int
    standing: int
    served: int = 0
    """Turns since nobody waited."""

    @property
    def places(self) -> int:
        """How many may wait now."""
        return min(self.longest, max(self.standing, self.longest - self.served))

    def record_turn(self, waiting: int, turns: int = 1) -> None:
        """Counts turns after which so many still wait; 0 turns: those who waited have left."""
        self.served = self.served + turns if waiting > 0 else 0


@dataclass(frozen=True, slots=True)
class Work:
    """A number of requests and a number of tokens."""

    requests: int
    tokens: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.requests + other.requests, self.tokens + other.tokens)

    def __sub__(self, other: "Work") -> "Work":
        return Work(self.requests - other.requests, self.tokens - other.tokens)


NOTHING = Work(0, 0)


class WorkUnderWay:
    """The work that holds places now, in all `held`, and when some of them will be free again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.held = NOTHING
        self._clock = clock
        self._began: dict[object, float] = {}
        self._released: deque[tuple[float, Work]] = deque(maxlen=REMEMBERED)

    @contextmanager
    def holding(self, work: Work) -> Iterator[None]:
        """Around the `work`, which then is released."""
        ticket = object()
        self.held += work
        self._began[ticket] = self._clock()
        try:
            yield
        finally:
            self.held -= work
            del self._began[ticket]
            self._released.append((self._clock(), work))

    def seconds_until(self, released: Work) -> int:
        """Whole seconds, 1 at least, until so much has been `released`, at the rate of the last releases.

        Without enough releases for a rate: as long as the oldest work has already taken.
        """
        now = self._clock()
        while self._released and now - self._released[0][0] > LONGEST_WAIT:
            self._released.popleft()
        seconds = now - next(iter(self._began.values()), now)
        if len(self._released) > 1:
            since = now - self._released[0][0]
            freed = [work for _, work in self._released][1:]  # the first one only marks the start of the time
            seconds = max(
                since * max(released.requests, 0) / max(sum(work.requests for work in freed), 1),
                since * max(released.tokens, 0) / max(sum(work.tokens for work in freed), 1),
            )
        return min(max(math.ceil(seconds), 1), LONGEST_WAIT)
