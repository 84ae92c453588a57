"""Counts what an HTTP client sends and receives."""

from dataclasses import dataclass


@dataclass(slots=True)
class Traffic:
    """Counters of a client's calls; bytes are those of bodies, after compression on the way up."""

    calls: int = 0
    retries: int = 0
    """Calls that repeat an earlier one; included in `calls`."""
    failures: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    total_ms: float = 0.0
    """Milliseconds of all calls together, each from its start to the end of its body."""

    @property
    def payload(self) -> int:
        """Bytes in both directions."""
        return self.bytes_up + self.bytes_down

    def add(self, other: "Traffic") -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def stats(self) -> dict[str, float]:
        """The counters under the names that `get_client_stats` promises, with the mean latency per call."""
        return {
            "total_requests": self.calls,
            "failed_requests": self.failures,
            "retries": self.retries,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "avg_latency_ms": self.total_ms / self.calls if self.calls else 0.0,
        }
