"""Curves of policies: what a perfect, a useless and a gated policy get, and that nothing is judged on what chose it."""

import numpy as np
import pytest

from experiments.harness import statistics
from experiments.harness.areas import under
from experiments.routing.curves import PolicyCurve, cost_of, curves
from experiments.routing.policies import BUDGETS, cross_fitted, hull
from experiments.routing.recorded import RecordedAnswers
from tests.support.routing.side_answers import side_answers

LOOKS = [0, 4]


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 200)


def recorded(told: float, gate_quality: float | None = None, count: int = 300) -> RecordedAnswers:
    """A gate, if there is one, costs 0.3 of the cloud's tokens and is right as often as `gate_quality`."""
    sides = side_answers(count, told)
    worth, tokens = (np.array([getattr(each, name) for each in sides], np.float64).T for name in ("worth", "tokens"))
    rows, costs = [*worth], [0 * tokens[0], tokens[1]]
    if gate_quality is not None:
        rows.append((np.random.default_rng(0).random(count) < gate_quality).astype(np.float64))
        costs.append(0.3 * tokens[1])
    names = ["edge_only", "cloud_only", "gate"][: len(rows)]
    return RecordedAnswers(names, np.array(rows), {"computed": np.array(costs)}, sides)


def found(answers: RecordedAnswers) -> dict[str, PolicyCurve]:
    return {one.name: one for one in curves(cross_fitted(answers, "computed", LOOKS))}


def test_every_policy_is_the_edge_without_a_budget_and_the_cloud_with_all_of_it() -> None:
    answers = recorded(0.9, 0.8)
    for policy in cross_fitted(answers, "computed", LOOKS):
        assert policy.quality.shape == (len(BUDGETS), 300)
        assert np.array_equal(policy.quality[0], answers.quality[0])
        assert np.array_equal(policy.quality[-1], answers.quality[1])
        assert not policy.cost[0].any()


def test_chance_is_the_straight_line_between_the_sides() -> None:
    chance = found(recorded(0.9))["random"]
    assert chance.apgr.value == pytest.approx(0.5)
    assert chance.cpt[0.5].value == pytest.approx(0.5)
    assert chance.cpt[0.8].value == pytest.approx(0.8)


def test_a_router_is_worth_as_much_as_what_it_looks_at() -> None:
    sharp, useless = found(recorded(0.95)), found(recorded(0.5))
    assert sharp["router, 4 tokens"].beside["random"].low > 0.1
    assert sharp["router, 4 tokens"].cpt[0.5].high < 0.4
    for name in ("router, prompt alone", "router, 4 tokens"):
        assert not useless[name].beside["random"].clear
    assert not sharp["router, prompt alone"].beside["random"].clear


def test_a_router_joins_a_gate_only_where_that_pays() -> None:
    good, poor = found(recorded(0.9, 0.93)), found(recorded(0.9, 0.5))
    assert good["token gate"].apgr.value > good["router, 4 tokens"].apgr.value
    assert good["router and gate"].apgr.value > good["token gate"].apgr.value - 0.03
    assert poor["token gate"].beside["random"].value == pytest.approx(0, abs=0.02)
    assert poor["router and gate"].beside["token gate"].low > 0


def test_thresholds_are_not_chosen_on_the_questions_that_judge_them() -> None:
    """With scores that say nothing, the best threshold of each half is luck, which the other half does not share."""
    answers = recorded(0.5, count=60)
    gained = [
        found(RecordedAnswers(answers.ways, answers.quality, answers.costs, sides))["router, 4 tokens"]
        for sides in (side_answers(60, 0.5, seed) for seed in range(4))
    ]
    assert np.mean([one.beside["random"].value for one in gained]) < 0.05


def test_the_hull_begins_at_the_first_point_and_leaves_out_what_another_beats() -> None:
    x, y = np.array([0.0, 1.0, 0.4, 0.5, 0.2, 0.6]), np.array([0.5, 0.9, 0.9, 0.6, 0.75, 0.95])
    assert hull(x, y) == [0, 4, 2, 5]


def test_the_cost_of_a_share_is_where_the_curve_first_reaches_it() -> None:
    cost, quality = np.array([[0.0, 0.2, 0.4, 1.0]]), np.array([[0.0, 0.6, 0.5, 1.0]])
    assert cost_of(0.5, cost, quality)[0] == pytest.approx(0.2 * 0.5 / 0.6)
    assert cost_of(0.6, cost, quality)[0] == pytest.approx(0.2)
    assert under(cost, quality)[0] == pytest.approx(0.06 + 0.11 + 0.45)
