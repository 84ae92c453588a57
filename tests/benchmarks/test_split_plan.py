"""The benchmark of plans: a fitted speed gives its own steps back, and orders are compared by ranks."""

import pytest

from benchmarks.measured_cut import TimedStep, fitted
from benchmarks.split_plan import rank_correlation
from models.partition.split_cost import EngineSpeed


def test_the_speed_of_steps_is_found_again() -> None:
    speed = EngineSpeed(0.8, 2.5, 0.15)
    steps = [
        TimedStep(layers, once, positions, speed.ms(layers, positions) + once * speed.layer_ms)
        for layers in (1, 4, 7)
        for once in (0.0, 1.3)
        for positions in (1, 9, 30)
    ]
    found = fitted(steps)
    assert (found.layer_ms, found.step_ms, found.further) == pytest.approx((0.8, 2.5, 0.15))


def test_the_rank_correlation_sees_the_order_only() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 11, 500, 501]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert abs(rank_correlation([1, 2, 3, 4], [2, 4, 1, 3])) < 0.01
