"""A token bucket as a pure function of its state and the time: what may be taken now, and when more may."""

from typing import NamedTuple

ROUNDING = 1e-6
"""Of times that are added up: who waits as long as it was told to is not refused for a part of a microsecond."""
DEBT_MINUTES = 5
"""The largest debt, in minutes' worth."""


class TokenBucket(NamedTuple):
    """`level`: what was left at time `at` (seconds); below 0 it is a debt, which is paid off before anything is taken.

    It holds at most a minute's worth, and owes at most what DEBT_MINUTES bring: nobody is locked out for long.
    """

    level: float
    at: float

    def refilled(self, per_minute: int, now: float) -> "TokenBucket":
        return TokenBucket(min(per_minute, self.level + (now - self.at) * per_minute / 60), now)

    def taken(self, amount: float, per_minute: int, now: float) -> "TokenBucket":
        """After taking `amount`, whether or not that is there; below 0 gives it back."""
        level, _ = self.refilled(per_minute, now)
        return TokenBucket(min(per_minute, max(level - amount, -DEBT_MINUTES * per_minute)), now)

    def seconds_until(self, amount: float, per_minute: int, now: float) -> float:
        """How long until `amount` may be taken; 0: now. More than the bucket holds may be taken when it is full."""
        level, _ = self.refilled(per_minute, now)
        missing = min(amount, per_minute) - level - ROUNDING
        return max(0.0, missing * 60 / per_minute)
