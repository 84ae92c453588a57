"""Fitting the gate: the isotonic map, the thresholds that are tried, and the ones that are chosen."""

import random

import numpy as np
import pytest

from calibration import fit as calibration
from calibration.calibrate import simulate
from calibration.fit import Isotonic
from calibration.simulation import Answers, Trace
from common.decoding.policy import Gate, Plan
from common.errors import ConfigError

BASE = Plan(max_draft_tokens=2)


def traffic(count: int, seed: int) -> list[Trace]:
    """Traces of random prompts, easy and hard, on which the edge is right about as often as it is confident."""
    rng = random.Random(seed)
    traces = []
    for number in range(count):
        ease = (0.02, 0.1, 0.4)[number % 3]
        confidences = [rng.random() ** ease for _ in range(rng.randint(5, 30))]
        agrees = [rng.random() < c**0.3 for c in confidences]
        traces.append(Trace(confidences, agrees, float(rng.random() < 0.9), 64))
    return traces


def found(traces: list[Trace]) -> tuple[list[Plan], Answers]:
    confidences, agrees = calibration.agreement(traces)
    mapping = Isotonic.fit(confidences, agrees)
    plans = calibration.plans(BASE, calibration.token_thresholds(confidences, mapping))
    return plans, simulate(traces, plans)


@pytest.fixture(scope="module")
def fitted() -> tuple[list[Plan], Answers]:
    return found(traffic(600, seed=0))


@pytest.mark.parametrize("seed", range(30))
def test_the_isotonic_fit_never_falls_and_is_the_least_squares_one(seed: int) -> None:
    """Against the max-min formula, max over a <= i of min over b >= i of the mean of y[a..b], by brute force."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 12, 20).astype(float)  # some of them equal
    y = rng.random(20) + 0.03 * x
    fit = Isotonic.fit(x, y)
    assert (np.diff(fit(np.sort(x))) >= 0).all()
    values = np.unique(x)
    for i, value in enumerate(values):
        means = [[y[(x >= values[a]) & (x <= values[b])].mean() for b in range(i, len(values))] for a in range(i + 1)]
        assert fit(value) == pytest.approx(max(min(row) for row in means))


def test_below_its_first_point_the_map_is_constant() -> None:
    assert Isotonic.fit([0.5, 0.6], [0, 1])([0.0, 0.59, 0.6, 1.0]).tolist() == [0, 0, 1, 1]


def test_a_plan_that_is_left_out_decides_like_one_that_is_kept() -> None:
    traces = traffic(60, seed=3)
    thresholds = [0.0, 0.4, 0.8, 0.95, 1.0]
    tried = calibration.plans(BASE, thresholds)
    kept = {(p.max_draft_tokens, p.gate) for p in tried}
    seen = {(p.max_draft_tokens, tuple(row)) for p, row in zip(tried, simulate(traces, tried).computed, strict=True)}
    missing = [
        Plan(gate=Gate(t, p), max_draft_tokens=length)
        for length in (1, 2)
        for t in thresholds
        for p in calibration.PRODUCTS
        if (length, Gate(t, p)) not in kept
    ]
    assert missing
    for plan, row in zip(missing, simulate(traces, missing).computed, strict=True):
        assert (plan.max_draft_tokens, tuple(row)) in seen, plan


@pytest.mark.parametrize("target", [0.15, 0.3, 0.5, 0.7])
def test_a_requested_cloud_rate_is_hit_on_other_prompts(target: float, fitted: tuple[list[Plan], Answers]) -> None:
    plans, answers = fitted
    chosen = plans[calibration.for_cloud_rate(answers, target)]
    assert abs(simulate(traffic(1500, seed=1), [chosen]).cloud_rate[0] - target) <= 0.03


@pytest.mark.parametrize("target", [0.94, 0.96, 0.98])
def test_a_requested_quality_is_hit_on_other_prompts(target: float, fitted: tuple[list[Plan], Answers]) -> None:
    plans, answers = fitted
    chosen = plans[calibration.for_quality(answers, target)]
    assert abs(simulate(traffic(1500, seed=1), [chosen]).quality[0] - target) <= 0.02


def test_two_thresholds_are_never_worse_than_either_alone_where_they_were_fitted(
    fitted: tuple[list[Plan], Answers],
) -> None:
    plans, answers = fitted
    token = np.array([plan.gate.product_threshold == 0 for plan in plans])
    product = np.array([plan.gate.threshold == 0 for plan in plans])
    assert token.any() and product.any() and not (token | product).all()
    both = calibration.frontier(answers.cloud_rate, -answers.quality)
    for row in range(len(plans)):
        cheaper = answers.cloud_rate[both] <= answers.cloud_rate[row]
        assert (answers.quality[both][cheaper] >= answers.quality[row]).any()
    for target in (0.85, 0.95):
        best = answers.cloud_work[calibration.for_quality(answers, target)]
        for alone in (token, product):
            assert best <= answers.cloud_work[alone & (answers.quality >= target)].min(initial=np.inf)


def test_the_frontier_is_sorted_and_no_gate_is_better_in_both() -> None:
    rng = np.random.default_rng(0)
    cost, harm = rng.integers(0, 20, 60).astype(float), rng.integers(0, 20, 60).astype(float)
    line = calibration.frontier(cost, harm)
    assert (np.diff(harm[line]) > 0).all() and (np.diff(cost[line]) < 0).all()
    for gate in line:
        assert not ((cost <= cost[gate]) & (harm < harm[gate]) | (cost < cost[gate]) & (harm <= harm[gate])).any()


def test_a_target_that_cannot_be_reached_is_named_with_the_nearest(fitted: tuple[list[Plan], Answers]) -> None:
    _, answers = fitted
    some = np.flatnonzero(answers.cloud_rate > 0.5)
    few = Answers(*(getattr(answers, name)[some] for name in Answers.__dataclass_fields__))
    with pytest.raises(ConfigError, match=r"--target-cloud-rate 0\.1: cannot be reached; the nearest is 0\.5"):
        calibration.for_cloud_rate(few, 0.1)
    with pytest.raises(ConfigError, match=r"--target-quality 1\.1: no thresholds reach it"):
        calibration.for_quality(few, 1.1)
    with pytest.raises(ConfigError, match=r"--max-risk 0\.01: not even the safest"):
        calibration.for_risk(few, few.of(np.arange(10)), 0.01, 0.95)


def test_thresholds_have_four_digits() -> None:
    confidences = np.random.default_rng(0).random(500) ** 0.1
    thresholds = calibration.token_thresholds(confidences, Isotonic.fit(confidences, confidences > 0.9))
    assert thresholds[0] == 0 and thresholds[-1] == 1 and thresholds == sorted(thresholds)
    assert all(float(f"{t:.4f}") == t for t in thresholds)
