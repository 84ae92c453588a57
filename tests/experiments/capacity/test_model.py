"""The model of many clients of one cloud: closed forms, fits, and the most clients at a speed. No servers."""

import pytest

from experiments.capacity import model
from experiments.capacity.model import STREAMING, ClientWork, StepCost
from experiments.fleet.load import DraftedAnswer, DraftedRound
from tests.experiments.capacity.works import EIGHT, UNEVEN


@pytest.mark.parametrize("number", [1, 7, 100])
def test_clients_that_never_pause_are_all_in_every_step(number: int) -> None:
    cost = StepCost(0.020, 0.003)
    assert model.speed(STREAMING, cost, number) == pytest.approx(1 / (0.020 + 0.003 * number))
    assert model.speed(EIGHT, cost, number) == pytest.approx(9 / (0.020 + 0.003 * 9 * number)), "a draft costs, too"


def test_a_lone_client_pays_its_pause_and_its_step() -> None:
    work = ClientWork([UNEVEN[0]], draft=0.010)
    expected = 6 / (9 * 0.010 + 2 * 0.020 + 11 * 0.003)
    assert model.speed(work, StepCost(0.020, 0.003), 1) == pytest.approx(expected, rel=0.02)


def test_what_many_clients_get_together_is_bounded_by_what_a_token_adds_to_a_step() -> None:
    work, cost = ClientWork(UNEVEN, draft=0.010), StepCost(0.020, 0.003)
    together = 1000 * model.speed(work, cost, 1000)
    computed = together * work.computed / work.tokens
    assert 0.9 / 0.003 < computed < 1 / 0.003


def test_pauses_of_some_clients_hide_behind_the_steps_of_others() -> None:
    paused, cost = ClientWork(UNEVEN, draft=0.010), StepCost(0.020, 0.003)
    at_once = ClientWork(UNEVEN, draft=0.0)
    kept = [model.speed(work, cost, 16) / model.speed(work, cost, 1) for work in (paused, at_once)]
    assert kept[0] > 1.2 * kept[1]


@pytest.mark.parametrize("work", [STREAMING, EIGHT, ClientWork(UNEVEN, 0.004)], ids=["stream", "rounds", "uneven"])
def test_a_fit_finds_the_cost_that_made_the_measurements(work: ClientWork) -> None:
    cost = StepCost(0.015, 0.002)
    found = model.fit(work, {number: model.speed(work, cost, number, seed=1) for number in (1, 4, 16, 64)})
    lone = round(work.computed / work.verified)
    assert found.seconds(lone) == pytest.approx(cost.seconds(lone), rel=0.05)
    assert model.speed(work, found, 256) == pytest.approx(model.speed(work, cost, 256), rel=0.15)


def test_an_edge_that_asks_nothing_is_not_slowed_down_by_others() -> None:
    alone = ClientWork([DraftedAnswer([5], [DraftedRound([], [], [1] * 4)])], draft=0.010)
    assert model.speed(alone, StepCost(1.0, 1.0), 500) == pytest.approx(100)


def test_the_most_clients_at_a_speed_are_found_to_the_one() -> None:
    assert model.clients_at(0.8, lambda number: 1 / number) == 1
    assert model.clients_at(0.01, lambda number: 1 / number) == 100
    assert model.clients_at(2.0, lambda number: 1 / number) == 0
    assert model.clients_at(0.5, lambda number: 1.0) == model.MOST_CLIENTS


def test_a_measured_line_is_read_between_its_points_and_nowhere_else() -> None:
    measured = {1: 10.0, 4: 9.0, 16: 3.0}
    assert model.between(8.0, measured) == pytest.approx(4 + 12 / 6)
    assert model.between(2.0, measured) is None
    assert model.between(11.0, measured) == 0
