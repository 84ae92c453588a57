"""Which exit is taken: by the configured threshold, and by a lower one only while an answer is behind its budget."""

import itertools
import math

import pytest

from common.errors import ConfigError
from edge.split.early_exit import AnswerPace, LatencyAwareEarlyExit, disabled_exits, thresholds_of

THRESHOLDS = 0.0, 0.3, 0.8, 1.0
PACES = [
    AnswerPace(tokens, elapsed, deeper)
    for tokens, elapsed, deeper in itertools.product((0, 1, 50), (0.0, 5.0, 100.0, 1e6), (0.0, 3.0, 500.0))
]
BUDGETS = 0.001, 4.0, 20.0, 1e9


def exits(threshold: float, budget: float | None = None) -> LatencyAwareEarlyExit:
    return LatencyAwareEarlyExit((threshold,), budget)


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("asked", THRESHOLDS)
def test_without_a_budget_the_threshold_is_what_was_asked_for(asked: float, pace: AnswerPace) -> None:
    assert exits(asked).threshold(0, pace) == asked
    assert exits(asked).takes(0, asked, pace)
    assert not asked or not exits(asked).takes(0, math.nextafter(asked, 0), pace)


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("asked", THRESHOLDS)
def test_a_budget_never_raises_it_above_what_was_asked_for_nor_below_nothing(
    asked: float, budget: float, pace: AnswerPace
) -> None:
    assert 0 <= exits(asked, budget).threshold(0, pace) <= asked


@pytest.mark.parametrize("asked", THRESHOLDS)
def test_the_later_an_answer_is_the_lower_and_the_more_budget_the_higher(asked: float) -> None:
    def threshold(budget: float = 20.0, tokens: int = 3, elapsed: float = 50.0, deeper: float = 40.0) -> float:
        return exits(asked, budget).threshold(0, AnswerPace(tokens, elapsed, deeper))

    def falls(values: list[float]) -> bool:
        return all(a >= b for a, b in itertools.pairwise(values))

    assert falls([threshold(elapsed=ms) for ms in (0, 30, 45, 60, 79, 80, 200)])
    assert falls([threshold(deeper=ms) for ms in (0, 1, 30, 31, 60, 1e5)])
    assert falls([threshold(budget=ms) for ms in (100, 22, 20, 15, 12.5, 5)])
    assert falls([threshold(tokens=n) for n in (9, 5, 4, 3, 2, 1, 0)])
    assert threshold(elapsed=80) == threshold(elapsed=1e9) == 0
    assert threshold(elapsed=40) == threshold(deeper=0.0) == asked


def test_an_answer_that_has_caught_up_is_answered_as_asked_again() -> None:
    behind, later = AnswerPace(2, 90.0, 25.0), AnswerPace(9, 97.0, 25.0)
    assert exits(0.8, 20.0).threshold(0, behind) < exits(0.8, 20.0).threshold(0, later) == 0.8


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("budget", [None, *BUDGETS])
@pytest.mark.parametrize("asked", [math.nextafter(1.0, 2.0), 2.0, math.inf])
def test_above_1_an_exit_is_never_taken_whatever_the_time(asked: float, budget: float | None, pace: AnswerPace) -> None:
    assert exits(asked, budget).disabled(0)
    assert not exits(asked, budget).takes(0, 1.0, pace)


def test_each_exit_has_its_own_threshold() -> None:
    both = LatencyAwareEarlyExit((0.9, 0.5))
    assert [both.takes(exit, 0.7, AnswerPace()) for exit in (0, 1)] == [False, True]


def test_one_threshold_is_for_all_exits_and_the_wrong_number_is_refused() -> None:
    assert thresholds_of([0.7], [2, 4, 6], "key") == (0.7, 0.7, 0.7)
    assert thresholds_of([0.7, 2], [2, 4], "key") == (0.7, 2)
    with pytest.raises(ConfigError, match=r"^key: 3 thresholds, but the model has exits after layers 2, 4: give 2"):
        thresholds_of([0.1, 0.2, 0.3], [2, 4], "key")
    for wrong in (-0.1, math.nan):
        with pytest.raises(ConfigError, match=r"^key: thresholds must be at least 0"):
            thresholds_of([wrong], [2, 4], "key")


def test_exits_that_are_never_taken_are_so_for_every_confidence() -> None:
    policy = LatencyAwareEarlyExit(disabled_exits(3), 0.001)
    assert not any(policy.takes(exit, 1.0, AnswerPace(0, 1e9, 1e9)) for exit in range(3))
