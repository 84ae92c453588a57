"""The circuit breaker under any sequence of events: when it opens, may be probed, and closes again."""

import random

import pytest

from common.cloud_client.circuit_breaker import BreakerState, CircuitBreaker


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_it_opens_at_exactly_so_many_failures_in_a_row(failures: int) -> None:
    breaker = CircuitBreaker(failures, probe_seconds=2.0)
    for _ in range(3):
        for _ in range(failures - 1):
            breaker.record_failure(0.0)
        breaker.record_success()
    assert breaker.closed
    for _ in range(failures):
        assert breaker.closed
        breaker.record_failure(0.0)
    assert breaker.state is BreakerState.OPEN
    assert breaker.openings == 1


def test_a_call_from_before_the_opening_neither_closes_it_nor_puts_off_its_probe() -> None:
    breaker = CircuitBreaker(1, probe_seconds=2.0)
    breaker.record_failure(10.0)
    breaker.record_success()
    breaker.record_failure(11.9)
    assert breaker.state is BreakerState.OPEN
    assert breaker.seconds_to_probe(11.9) == pytest.approx(0.1)
    assert breaker.openings == 1


def test_probes_begin_one_interval_after_the_opening_and_after_each_others_begin() -> None:
    breaker = CircuitBreaker(1, probe_seconds=2.0)
    breaker.record_failure(10.0)
    assert breaker.seconds_to_probe(10.0) == 2.0
    breaker.begin_probe(12.0)
    assert breaker.state is BreakerState.HALF_OPEN
    breaker.end_probe(healthy=False)  # it took 1.5 seconds to fail
    assert breaker.seconds_to_probe(13.5) == 0.5
    breaker.begin_probe(14.0)
    breaker.end_probe(healthy=True)
    assert breaker.closed


def test_after_a_probe_it_is_on_trial_until_something_succeeds() -> None:
    breaker = CircuitBreaker(3, probe_seconds=1.0)

    def back() -> None:
        for _ in range(3):
            breaker.record_failure(0.0)
        breaker.begin_probe(1.0)
        breaker.end_probe(healthy=True)

    back()
    breaker.record_failure(1.5)
    assert breaker.state is BreakerState.OPEN, "one failure is enough"
    breaker.begin_probe(3.0)
    breaker.end_probe(healthy=True)
    breaker.record_success()
    breaker.record_failure(3.5)
    breaker.record_failure(3.6)
    assert breaker.closed, "it has proved itself"


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_it_is_what_a_count_of_failures_says(seed: int) -> None:
    """A thousand random events, compared with a second implementation of the rule."""
    chance = random.Random(seed)
    failures = chance.randint(1, 4)
    breaker = CircuitBreaker(failures, probe_seconds=1.0)
    now, row, opened_at, openings = 0.0, 0, None, 0
    for _ in range(1000):
        now += chance.random()
        match chance.choice(["ok", "fail", "fail", "look"]):
            case "ok":
                breaker.record_success()
                row = 0 if opened_at is None else row
            case "fail":
                breaker.record_failure(now)
                row += 1
                if opened_at is None and row >= failures:
                    opened_at, openings = now, openings + 1
            case "look" if opened_at is not None:
                assert breaker.seconds_to_probe(now) == pytest.approx(max(0.0, opened_at + 1.0 - now))
                if breaker.seconds_to_probe(now) == 0.0:
                    breaker.begin_probe(now)
                    healthy = chance.random() < 0.5
                    breaker.end_probe(healthy)
                    opened_at, row = (None, failures - 1) if healthy else (now, row)
        assert breaker.closed == (opened_at is None)
        assert breaker.openings == openings
