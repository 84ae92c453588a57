"""Whether a server is asked at all: closed, open after failures in a row, half-open while it is tried. Knows no clock.

The pattern is Nygard's circuit breaker (Release It!, 2007). Times are in seconds on any clock that only goes forward.
"""

from enum import StrEnum


class State(StrEnum):
    """Closed: asked as usual. Open: not asked. Half-open: not asked, but for one probe that is under way."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Opens after `failures` (>= 1) in a row; may be probed `probe_seconds` after that and after each probe's begin.

    A probe that succeeds closes it on trial: until something has succeeded since, one failure opens it again.
    """

    def __init__(self, failures: int, probe_seconds: float) -> None:
        self.state = State.CLOSED
        self.openings = 0
        """How often it opened from closed."""
        self._failures = failures
        self._probe_seconds = probe_seconds
        self._in_a_row = 0
        self._probe_at = 0.0

    @property
    def closed(self) -> bool:
        return self.state is State.CLOSED

    def succeeded(self) -> None:
        """A call came back. What was asked before the breaker opened says nothing about now: only a probe closes it."""
        if self.closed:
            self._in_a_row = 0

    def failed(self, now: float) -> None:
        """A call did not come back."""
        self._in_a_row += 1
        if self.closed and self._in_a_row >= self._failures:
            self.state = State.OPEN
            self.openings += 1
            self._probe_at = now + self._probe_seconds

    def probe_in(self, now: float) -> float:
        """Seconds until a probe may begin; 0 when it may now."""
        return max(0.0, self._probe_at - now)

    def probe(self, now: float) -> None:
        """A probe begins; `probed` tells what came of it."""
        assert self.state is State.OPEN
        self.state = State.HALF_OPEN
        self._probe_at = now + self._probe_seconds

    def probed(self, healthy: bool) -> None:
        assert self.state is State.HALF_OPEN
        self.state = State.CLOSED if healthy else State.OPEN
        if healthy:
            self._in_a_row = self._failures - 1
