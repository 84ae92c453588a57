"""What each tenant has used since midnight: cloud tokens, and money."""

from collections.abc import Callable
from datetime import date, datetime, timedelta

from msgspec import Struct

MOST_TOKENS = 2**63 - 1
"""More than the file of the day's sums can hold is not counted."""


class DayUse(Struct):
    """The sums of one tenant."""

    cost: float = 0.0
    """In the currency of the prices."""
    cloud_tokens: int = 0


class DailyUse:
    """Owns the sums of the running day, which start anew at midnight, local time. Used from one event loop."""

    def __init__(self, now: Callable[[], datetime] = datetime.now) -> None:
        self.now = now
        self._day = now().date()
        self._tenants: dict[str, DayUse] = {}
        self.changes = 0
        """Another number whenever a sum has grown."""

    @property
    def day(self) -> date:
        self._turn_over()
        return self._day

    @property
    def tenants(self) -> dict[str, DayUse]:
        """By name, those that have used anything today."""
        self._turn_over()
        return self._tenants

    def of(self, tenant: str) -> DayUse:
        return self.tenants.get(tenant) or DayUse()

    def add(self, tenant: str, cost: float, cloud_tokens: int) -> None:
        use = self.tenants.setdefault(tenant, DayUse())
        use.cost += cost
        use.cloud_tokens = min(use.cloud_tokens + cloud_tokens, MOST_TOKENS)
        self.changes += 1

    def seconds_left(self) -> int:
        """Until midnight, rounded up."""
        now = self.now()
        midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return int((midnight - now).total_seconds()) + 1

    def _turn_over(self) -> None:
        if self._day != (day := self.now().date()):
            self._tenants, self._day = {}, day
