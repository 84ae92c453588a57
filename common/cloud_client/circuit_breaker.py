"""Stops calls to a server that keeps failing, and probes whether it has recovered.

The pattern is Nygard's circuit breaker (Release It!, 2007). Times are seconds on any monotonic clock.
"""

from enum import StrEnum


class BreakerState(StrEnum):
    """The three states of a circuit breaker."""

    CLOSED = "closed"
    """Calls are made."""
    OPEN = "open"
    """No calls are made."""
    HALF_OPEN = "half_open"
    """No calls are made but one probe, which is running."""


class CircuitBreaker:
    """Opens after `failures` (>= 1) consecutive failures.

    A probe may start `probe_seconds` after the opening, and after the start of the previous probe. A successful probe
    closes the breaker on trial: one failure opens it again until a call has succeeded.
    """

    def __init__(self, failures: int, probe_seconds: float) -> None:
        self.state = BreakerState.CLOSED
        self.openings = 0
        """How often the breaker went from closed to open."""
        self._failures = failures
        self._probe_seconds = probe_seconds
        self._consecutive_failures = 0
        self._probe_at = 0.0

    @property
    def closed(self) -> bool:
        return self.state is BreakerState.CLOSED

    def record_success(self) -> None:
        """Ignored unless closed: a call from before the opening says nothing about now, and only a probe closes it."""
        if self.closed:
            self._consecutive_failures = 0

    def record_failure(self, now: float) -> None:
        """Opens the breaker if this is the last of `failures` consecutive failures."""
        self._consecutive_failures += 1
        if self.closed and self._consecutive_failures >= self._failures:
            self.state = BreakerState.OPEN
            self.openings += 1
            self._probe_at = now + self._probe_seconds

    def seconds_to_probe(self, now: float) -> float:
        """Seconds until a probe may start; 0 if it may start now."""
        return max(0.0, self._probe_at - now)

    def begin_probe(self, now: float) -> None:
        """Goes from open to half-open; `end_probe` must follow."""
        assert self.state is BreakerState.OPEN
        self.state = BreakerState.HALF_OPEN
        self._probe_at = now + self._probe_seconds

    def end_probe(self, healthy: bool) -> None:
        """Goes from half-open to closed if the server is healthy, else back to open."""
        assert self.state is BreakerState.HALF_OPEN
        self.state = BreakerState.CLOSED if healthy else BreakerState.OPEN
        if healthy:
            self._consecutive_failures = self._failures - 1
