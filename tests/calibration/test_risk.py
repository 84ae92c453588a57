"""Exact tests and intervals: their guarantees hold over many random data sets, and do not hold without them."""

import itertools
import math

import numpy as np
import pytest

from calibration import fit as calibration
from calibration import risk
from calibration.simulation import Answers

RISKS = np.linspace(0.01, 0.3, 15)
"""True risks of gates, from the safest on."""


@pytest.mark.parametrize("trials", [1, 2, 5, 10])
def test_the_binomial_tail_is_the_sum_over_all_ways_to_fail(trials: int) -> None:
    for failures, p in itertools.product(range(trials + 1), (0.05, 0.5, 0.8)):
        ways = [w for w in itertools.product((0, 1), repeat=trials) if sum(w) <= failures]
        exact = sum(p ** sum(w) * (1 - p) ** (trials - sum(w)) for w in ways)
        assert risk.binomial_cdf(failures, trials, p) == pytest.approx(exact)


def test_the_trials_needed_are_the_fewest_that_can_pass() -> None:
    for bound, confidence in itertools.product((0.01, 0.05, 0.2), (0.8, 0.95, 0.99)):
        needed = risk.trials_needed(bound, confidence)
        assert risk.last_safe([0], needed, bound, confidence) == 0
        assert risk.last_safe([0], needed - 1, bound, confidence) is None


def dataset(rng: np.random.Generator, prompts: int) -> Answers:
    """Answers under each gate: a riskier one fails on the prompts of a safer one, and on more; it costs less."""
    luck = rng.random(prompts)
    worth = (luck[None] >= RISKS[:, None]).astype(float)
    ones = np.ones_like(worth)
    cost = ones * np.linspace(1, 0.1, len(RISKS))[:, None]
    return Answers(ones, cost, cost, ones, worth, ones, ones)


def test_the_risk_exceeds_its_bound_at_most_as_often_as_allowed() -> None:
    """Without the test it does not: the cheapest gate with few enough failures is too risky half of the time."""
    rng = np.random.default_rng(0)
    bound, confidence, runs = 0.1, 0.9, 600
    broken = naively_broken = used = 0
    for _ in range(runs):
        ordering, testing = dataset(rng, 200), dataset(rng, 200)
        chosen = calibration.for_risk(ordering, testing, bound, confidence)
        used += RISKS[chosen] > RISKS[0]
        broken += RISKS[chosen] > bound
        naively_broken += RISKS[np.flatnonzero(testing.risk <= bound)[-1]] > bound
    allowed = (1 - confidence) * runs
    noise = 3 * math.sqrt(allowed * confidence)
    assert broken <= allowed + noise
    assert naively_broken > allowed + noise
    assert used > runs / 2, "a bound that only the safest gate keeps would test nothing"


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_intervals_cover_the_truth_about_as_often_as_they_say(share: float) -> None:
    rng = np.random.default_rng(1)
    covered = {"wilson": 0, "bootstrap": 0}
    for run in range(100):
        drawn = rng.random(400) < share
        low, high = risk.wilson(int(drawn.sum()), 400)
        covered["wilson"] += low <= share <= high
        low, high = risk.bootstrap(lambda some, drawn=drawn: drawn[some].mean(), 400, seed=run)
        covered["bootstrap"] += low <= share <= high
    assert all(85 <= count <= 100 for count in covered.values()), covered
