"""What answers cost, by tenant and by day, and what a spent budget changes."""

from dataclasses import replace
from typing import NamedTuple

from msgspec import structs
from prometheus_client import CollectorRegistry, Counter

from common.config_schema import BudgetConfig, CloudPrices, PricesConfig
from common.decoding.policy import Plan
from common.enums import BY_CLOUD
from common.errors import RateLimitError
from common.http.request_context import current_tenant
from common.types import Collaboration, Mode, Provenance
from edge.tenants.daily_use import DailyUse, DayUse
from edge.tenants.limits import LimitsOf, TenantLimits, no_limits

NO_OWN_PRICES = CloudPrices()


class CostAccount:
    """In the currency of the prices. The budget is that of all tenants together; each may have one of its own."""

    def __init__(
        self,
        prices: PricesConfig,
        budget: BudgetConfig,
        registry: CollectorRegistry,
        use: DailyUse,
        limits: LimitsOf = no_limits,
    ) -> None:
        self._prices, self._budget, self._today, self._limits = prices, budget, use, limits
        self._since_start: dict[str, float] = {}
        self._counter = Counter("edgecloud_cost", "What answers cost.", registry=registry)
        help_text = "Tokens that clouds read and wrote for answers, as the day's limits count them."
        self._cloud_tokens = Counter("edgecloud_cloud_tokens", help_text, registry=registry)

    def record(self, report: Collaboration, prompt_tokens: int, own: CloudPrices = NO_OWN_PRICES) -> None:
        """Counts an answer that has ended for its tenant, and sets its cost if there are prices.

        `own`: the prices of the cloud that answered, where it has any.
        """
        prices, work = prices_of(own, self._prices), work_of(report, prompt_tokens)
        if any((prices.prompt, prices.completion, prices.edge_hour)):
            report.cost = cost_of(work, report.edge_latency_ms, prices)
        self._add(report.cost or 0.0, work)

    def record_read(self, tokens: int, own: CloudPrices = NO_OWN_PRICES) -> None:
        """Counts tokens that a cloud has read for something else than an answer."""
        work = BilledTokens(tokens, 0)
        self._add(cost_of(work, 0.0, prices_of(own, self._prices)), work)

    def within_budget(self, plan: Plan, only_cloud: bool = False) -> Plan:
        """The plan; that of the edge alone once a budget is spent, or RateLimitError, as the config says.

        `only_cloud`: nothing but a cloud can answer, so that there is no plan of the edge alone.
        """
        spent = self._spent(current_tenant.get()) if plan.asks_cloud else None
        if spent is None:
            return plan
        if only_cloud or self._budget.when_spent == "refuse":
            seconds = self._today.seconds_left()
            raise RateLimitError(f"{spent}: try again in {seconds} s", retry_after=seconds)
        because = f"{spent}: the edge answers alone"
        if plan.mode is Mode.SPLIT:
            return replace(plan, standalone=True, mode_because=because)
        return replace(plan, mode=Mode.EDGE_ONLY, mode_because=because)

    def stats(self, tenant: str | None = None) -> dict[str, dict[str, float]]:
        """What was spent and used, by tenant: all of them (None), or one."""
        today = self._today.tenants
        rows: dict[str, dict[str, float]] = {
            "today": {name: use.cost for name, use in today.items() if use.cost},
            "since_start": dict(self._since_start),
            "cloud_tokens_today": {name: use.cloud_tokens for name, use in today.items() if use.cloud_tokens},
        }
        if tenant is None:
            return rows
        return {name: {tenant: row.get(tenant, 0)} for name, row in rows.items()}

    def _add(self, cost: float, work: "BilledTokens") -> None:
        tenant = current_tenant.get()
        self._today.add(tenant, cost, sum(work))
        if cost:
            self._since_start[tenant] = self._since_start.get(tenant, 0.0) + cost
        self._counter.inc(cost)
        self._cloud_tokens.inc(sum(work))

    def _spent(self, tenant: str) -> str | None:
        """Which budget is spent, in words; None: none that matters to `tenant`."""
        if 0 < self._budget.daily <= sum(use.cost for use in self._today.tenants.values()):
            return "the day's budget is spent"
        return spent_by(self._today.of(tenant), self._limits(tenant))


class BilledTokens(NamedTuple):
    """What clouds did for one answer, in tokens."""

    read: int
    written: int


def spent_by(use: DayUse, limits: TenantLimits) -> str | None:
    """Which of a tenant's own limits of the day is reached, in words."""
    if 0 < limits.cost_per_day <= use.cost:
        return "this key's budget of the day is spent"
    if 0 < limits.cloud_tokens_per_day <= use.cloud_tokens:
        return "this key's cloud tokens of the day are used up"
    return None


def prices_of(own: CloudPrices, general: PricesConfig) -> PricesConfig:
    """The prices of a cloud: its own, else those of all clouds."""
    given = {name: price for name, price in structs.asdict(own).items() if price is not None}
    return structs.replace(general, **given)


def work_of(report: Collaboration, prompt_tokens: int) -> BilledTokens:
    """Clouds read a prompt once, what the edge kept before they went on, and drafts; they write what is theirs."""
    drawn = sum(report.tokens[source] for source in BY_CLOUD)
    written = max(drawn, report.cloud_steps)  # with the token that ends an answer, which no text shows
    kept = report.tokens[Provenance.EDGE] if written else 0
    read = prompt_tokens + kept + report.drafted if report.cloud_calls else 0
    return BilledTokens(read, written)


def cost_of(work: BilledTokens, edge_ms: float, prices: PricesConfig) -> float:
    """What clouds did, and the time that the edge drafted."""
    return (work.read * prices.prompt + work.written * prices.completion) / 1e6 + edge_ms / 3.6e6 * prices.edge_hour
