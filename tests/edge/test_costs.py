"""What answers cost, and what a spent budget changes, day by day."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry

from common.config_schema import BudgetConfig, CloudPrices, PricesConfig
from common.decoding.policy import Plan
from common.errors import RateLimitError
from common.http.request_context import current_tenant
from common.types import Collaboration, Mode
from edge.costs import CostAccount, cost_of, work_of
from edge.tenants.daily_use import DailyUse
from edge.tenants.limits import LimitsOf, TenantLimits, no_limits

PRICES = PricesConfig(prompt=1.0, completion=10.0, edge_hour=3.6)
NOON = datetime(2026, 3, 1, 12)


class Clock:
    now = NOON

    def __call__(self) -> datetime:
        return self.now


def report(
    cloud_calls: int = 1, drafted: int = 0, ms: float = 0.0, cloud_steps: int = 0, **tokens: int
) -> Collaboration:
    made = Collaboration(cloud_calls=cloud_calls, drafted=drafted, edge_latency_ms=ms, cloud_steps=cloud_steps)
    made.tokens |= tokens
    return made


def costs(
    clock: Clock | None = None, prices: PricesConfig = PRICES, limits: LimitsOf = no_limits, **budget: object
) -> CostAccount:
    config = BudgetConfig(**budget)  # type: ignore[arg-type]
    return CostAccount(prices, config, CollectorRegistry(), DailyUse(clock or Clock()), limits)


@pytest.mark.parametrize(
    ("answer", "millionths"),
    [
        (report(cloud_calls=0, edge=50), 0),
        (report(cloud_calls=0, edge=50, ms=2.0), 2),
        (report(cloud=20), 100 + 200),
        (report(cloud_steps=21, cloud=20), 100 + 210),
        (report(edge=30, cloud=20), 100 + 30 + 200),
        (report(drafted=40, accepted=35, recovered=3, bonus=2), 100 + 40 + 50),
    ],
)
def test_clouds_are_paid_for_what_they_read_and_write_and_the_edge_for_its_time(
    answer: Collaboration, millionths: float
) -> None:
    assert cost_of(work_of(answer, 100), answer.edge_latency_ms, PRICES) == pytest.approx(millionths / 1e6)


def test_each_tenant_has_its_own_sum() -> None:
    counted = costs()
    for tenant, times in (("a", 1), ("b", 2)):
        token = current_tenant.set(tenant)
        for _ in range(times):
            counted.record(report(cloud=10), 100)
        current_tenant.reset(token)
    assert counted.stats()["today"] == {"a": pytest.approx(2e-4), "b": pytest.approx(4e-4)}
    assert counted.stats("b")["since_start"] == {"b": pytest.approx(4e-4)}
    assert counted.stats("c")["today"] == {"c": 0.0}


def test_without_prices_nothing_has_a_cost() -> None:
    answer, counted = report(cloud=10), costs(prices=PricesConfig())
    counted.record(answer, 100)
    assert (answer.cost, counted.stats()["today"]) == (None, {})


def test_a_budget_holds_for_a_day_and_for_what_asks_the_cloud() -> None:
    clock = Clock()
    counted = costs(clock, daily=1e-4)
    asking, alone = Plan(), Plan(mode=Mode.EDGE_ONLY)
    assert counted.within_budget(asking) is asking
    counted.record(report(cloud=10), 100)
    assert counted.within_budget(asking).mode is Mode.EDGE_ONLY
    assert counted.within_budget(Plan(mode=Mode.SPLIT)).standalone
    assert counted.within_budget(alone) is alone
    clock.now += timedelta(hours=12)
    assert counted.within_budget(asking) is asking
    assert counted.stats()["since_start"], "which goes on"


def test_a_spent_budget_that_refuses_says_when_to_come_again() -> None:
    counted = costs(daily=1e-4, when_spent="refuse")
    counted.record(report(cloud=10), 100)
    with pytest.raises(RateLimitError) as caught:
        counted.within_budget(Plan())
    assert caught.value.retry_after == 12 * 3600 + 1


def test_a_spent_budget_refuses_what_only_a_cloud_can_answer() -> None:
    counted = costs(daily=1e-4)
    asking = Plan(mode=Mode.CLOUD_ONLY)
    assert counted.within_budget(asking, only_cloud=True) is asking
    counted.record(report(cloud=10), 100)
    with pytest.raises(RateLimitError, match="the day's budget is spent"):
        counted.within_budget(asking, only_cloud=True)


def of_each(**limits: TenantLimits) -> LimitsOf:
    return lambda tenant: limits.get(tenant, TenantLimits())


@contextmanager
def asked_by(tenant: str) -> Iterator[None]:
    token = current_tenant.set(tenant)
    try:
        yield
    finally:
        current_tenant.reset(token)


@pytest.mark.parametrize("limit", [TenantLimits(cloud_tokens_per_day=110), TenantLimits(cost_per_day=2e-4)], ids=str)
def test_a_key_that_has_used_up_its_day_stays_at_the_edge_and_the_others_do_not(limit: TenantLimits) -> None:
    clock = Clock()
    counted = costs(clock, limits=of_each(ann=limit))
    with asked_by("ann"):
        counted.record(report(cloud=9), 90)
        assert counted.within_budget(Plan()).asks_cloud, "all but a little is used"
        counted.record(report(cloud=1), 10)
        plan = counted.within_budget(Plan())
        assert plan.mode is Mode.EDGE_ONLY and "this key's" in (plan.mode_because or "")
    with asked_by("bob"):
        assert counted.within_budget(Plan()).asks_cloud
    clock.now += timedelta(hours=12)
    with asked_by("ann"):
        assert counted.within_budget(Plan()).asks_cloud


def test_cloud_tokens_are_those_that_the_cost_is_of_also_without_prices() -> None:
    counted = costs(prices=PricesConfig())
    counted.record(report(drafted=40, accepted=35, recovered=3, bonus=2), 100)
    counted.record(report(cloud_calls=0, edge=50), 100)
    counted.record_read(7)
    assert counted.stats()["cloud_tokens_today"] == {"": 100 + 40 + 5 + 7}


def test_a_cloud_has_prices_of_its_own_and_the_edge_its_hour() -> None:
    answers = [report(cloud=10, ms=1.0) for _ in range(3)]
    counted = costs()
    for answer, own in zip(
        answers, (CloudPrices(), CloudPrices(completion=1.0), CloudPrices(prompt=0, completion=0)), strict=True
    ):
        counted.record(answer, 100, own)
    assert [one.cost for one in answers] == [pytest.approx(n / 1e6) for n in (201, 111, 1)]
    assert counted.stats()["today"] == {"": pytest.approx(313e-6)}
