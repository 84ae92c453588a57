"""Rates of tenants: what counts, what is refused, for how long, and what the headers say."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from prometheus_client import CollectorRegistry

from common.config_edge import KeyConfig, QuotasConfig
from common.config_values import Secret
from common.errors import RateLimitError
from common.http.auth import tenant_name
from common.http.request_context import current_tenant
from edge.tenants.limits import limits_of
from edge.tenants.quotas import Quotas, duration
from tests.support.manual_clock import ManualClock

ANN, BOB = Secret("key-of-ann"), Secret("key-of-bob")


class LimitedEdge:
    """Quotas, a clock, and requests that end at once."""

    def __init__(self, **limits: object) -> None:
        self.clock, self.registry = ManualClock(100.0), CollectorRegistry()
        config = QuotasConfig(**limits)  # type: ignore[arg-type]
        self.quotas = Quotas(limits_of(config), self.registry, self.clock)

    def ask(self, key: Secret = ANN, prompt: int = 0, answer: int = 0) -> int:
        """The seconds that a refusal names; 0: it was answered."""
        with asked_by(key) as tenant:
            try:
                with self.quotas.request(tenant):
                    self.quotas.admit_prompt(prompt)
                    self.quotas.record(answer)
            except RateLimitError as error:
                return error.retry_after
        return 0

    def refused(self, limit: str) -> float | None:
        return self.registry.get_sample_value("edgecloud_rate_limited_total", {"limit": limit})


@contextmanager
def asked_by(key: Secret) -> Iterator[str]:
    token = current_tenant.set(tenant_name(key))
    try:
        yield current_tenant.get()
    finally:
        current_tenant.reset(token)


def test_a_request_too_many_is_told_when_to_come_again_and_does_not_count() -> None:
    edge = LimitedEdge(requests_per_minute=6)
    assert [edge.ask() for _ in range(8)] == [0] * 6 + [10, 10]
    edge.clock.now += 9.9
    assert edge.ask() == 1
    edge.clock.now += 0.1
    assert [edge.ask(), edge.ask()] == [0, 10]
    assert edge.refused("requests") == 4


def test_a_key_has_limits_of_its_own_and_the_rest_from_those_of_all() -> None:
    edge = LimitedEdge(requests_per_minute=2, keys=[KeyConfig(api_key=ANN, requests_per_minute=4, weight=3)])
    assert [edge.ask(ANN) > 0 for _ in range(5)] == [False] * 4 + [True]
    assert [edge.ask(BOB) > 0 for _ in range(3)] == [False] * 2 + [True], "ann's requests are not bob's"
    own = limits_of(QuotasConfig(concurrent_requests=5, keys=[KeyConfig(api_key=ANN, concurrent_requests=0)]))
    assert own(tenant_name(ANN)).concurrent_requests == 0, "no limit is a limit of its own, too"
    assert own(tenant_name(BOB)).concurrent_requests == 5


def test_without_limits_nothing_is_refused_and_no_header_is_set() -> None:
    edge = LimitedEdge()
    assert {edge.ask(prompt=10**6, answer=10**6) for _ in range(100)} == {0}
    assert edge.quotas.headers("") == {}


def test_prompts_count_at_once_and_answers_when_they_end() -> None:
    edge = LimitedEdge(tokens_per_minute=60)
    assert edge.ask(prompt=40) == 0
    assert edge.ask(prompt=30) == 10, "20 are left"
    assert edge.ask(prompt=20, answer=30) == 0, "how long an answer is, nobody knows before"
    assert edge.ask() == 31, "its tokens are a debt now: no prompt is read before it is paid"
    edge.clock.now += 31
    assert edge.ask(prompt=1) == 0


def test_a_prompt_longer_than_a_minutes_worth_waits_for_a_full_bucket_and_is_then_admitted() -> None:
    edge = LimitedEdge(tokens_per_minute=60)
    assert edge.ask(prompt=1) == 0
    assert edge.ask(prompt=100) == 1
    edge.clock.now += 1
    assert edge.ask(prompt=100) == 0
    assert edge.ask() == 41


def test_a_debt_keeps_a_key_out_for_minutes_and_not_for_days() -> None:
    edge = LimitedEdge(tokens_per_minute=60)
    assert edge.ask(prompt=10, answer=10**9) == 0
    assert edge.ask() == 5 * 60 + 1
    edge.clock.now += 5 * 60 + 1
    assert edge.ask(prompt=1) == 0


@pytest.mark.parametrize(("guessed", "used", "left"), [(50, 20, 40), (20, 50, 10), (30, 0, 60), (10**6, 10**5, -300)])
def test_the_tokens_of_a_prompt_take_the_place_of_their_guess(guessed: int, used: int, left: int) -> None:
    edge = LimitedEdge(tokens_per_minute=60)
    with asked_by(ANN) as tenant:
        edge.quotas.admit_prompt(guessed)
        edge.quotas.settle_prompt(guessed, used)
        assert edge.quotas.stats(tenant)[tenant]["tokens_left"] == left


def test_as_many_run_at_once_as_may_and_a_failed_one_frees_its_place() -> None:
    edge = LimitedEdge(concurrent_requests=2)
    with ExitStack() as running:
        for _ in range(2):
            running.enter_context(edge.quotas.request(tenant_name(ANN)))
        assert (edge.ask(ANN), edge.ask(BOB)) == (1, 0)
        assert edge.refused("concurrent") == 1
    with pytest.raises(ZeroDivisionError), edge.quotas.request(tenant_name(ANN)):
        raise ZeroDivisionError
    assert edge.ask(ANN) == 0


def test_the_headers_are_openais() -> None:
    edge = LimitedEdge(requests_per_minute=60, tokens_per_minute=600)
    edge.ask(prompt=100, answer=50)
    assert edge.quotas.headers(tenant_name(ANN)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "450",
        "x-ratelimit-reset-tokens": "15s",
    }
    edge.ask(answer=900)
    assert edge.quotas.headers(tenant_name(ANN))["x-ratelimit-remaining-tokens"] == "0"
    assert [duration(s) for s in (0.0, 0.12, 1.0, 7.664, 59.9, 60.0, 361.2)] == [
        *("0ms", "120ms", "1s", "7.66s", "59.9s", "1m0s", "6m2s"),
    ]


def test_each_tenant_sees_its_own_figures() -> None:
    edge = LimitedEdge(requests_per_minute=60)
    edge.ask(ANN)
    edge.ask(BOB)
    (row,) = edge.quotas.stats(tenant_name(ANN)).values()
    assert row == {"weight": 1.0, "requests_now": 0, "requests_per_minute": 60, "requests_left": 59}
    assert set(edge.quotas.stats()) == {tenant_name(ANN), tenant_name(BOB)}
