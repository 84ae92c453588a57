"""The report of a network sweep follows from its passes: exactness, ratios, bounds. No servers."""

import random
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from experiments.network import bounds, tables
from experiments.network.answer_modes import ANSWER_MODES
from experiments.network.bounds import Costs
from experiments.network.document import of_sweep
from experiments.network.passes import PASS_QUESTIONS, NetworkCell, SweepPlan, passes
from experiments.report import panel_grid
from tests.support.reports.fake_sweep import PLAN, pass_result, peer_report, sweep_report

COSTS = Costs(round_trip=0.05, tokens=40, step=0.005, draft=0.02, rounds=8, verify=0.008, steps=20, draft_step=0.007)


# -- bounds


def test_drafting_ahead_never_costs_but_the_first_draft_stays() -> None:
    rng = random.Random(0)
    for _ in range(500):
        costs = replace(COSTS, **{name: rng.uniform(0.001, 1) for name in ("draft", "verify", "round_trip")})
        ahead, not_ahead = bounds.rounds_seconds(costs, ahead=True), bounds.rounds_seconds(costs, ahead=False)
        assert costs.draft / costs.rounds + costs.rounds * costs.verify < ahead <= not_ahead + 1e-9


def test_perfect_drafts_save_all_round_trips_but_one() -> None:
    perfect = replace(COSTS, rounds=1, verify=0.005, draft=0.0)
    assert bounds.rounds_seconds(perfect, ahead=True) == pytest.approx(COSTS.round_trip + COSTS.step)
    no_drafts = replace(COSTS, steps=40, draft_step=0.005)
    assert bounds.continuous_seconds(no_drafts) == pytest.approx(bounds.plain_seconds(COSTS))


def test_rounds_lose_to_cloud_only_as_the_round_trip_grows_and_continuous_does_not() -> None:
    for round_trip in (0.0, 0.014, 0.05, 0.1, 1.0):
        costs = replace(COSTS, round_trip=round_trip)
        assert bounds.continuous_seconds(costs) < bounds.plain_seconds(costs)
    far = replace(COSTS, round_trip=1.0)
    assert bounds.rounds_seconds(far, ahead=True) > bounds.plain_seconds(far)


# -- passes


def test_passes_cover_every_question_in_every_cell_once_a_repeat() -> None:
    plan = SweepPlan(round_trips=[0, 9], uplinks=[1, 2], clients=[1, 3], ways=["cloud"], prompts=70, repeats=2,
                max_tokens=1, seed=0)  # fmt: skip
    made = list(passes(plan))
    assert len(set(made)) == len(made)
    asked = [(one.cell, one.repeat, at) for one in made for at in range(one.first, one.last)]
    assert len(set(asked)) == len(asked) == 8 * 2 * 70
    assert max(one.last - one.first for one in made) == PASS_QUESTIONS
    assert all(one.last - one.first >= 40 for one in passes(msgspec.structs.replace(plan, clients=[40], prompts=80)))
    assert {one.cell for one in made[:8]} == set(plan.cells), "a sweep cut short has something in every cell"


def test_each_mode_is_first_about_as_often_as_any_other() -> None:
    modes = [ANSWER_MODES[name] for name in PLAN.ways]
    firsts = [one.order(modes, seed)[0].name for seed in range(100) for one in passes(PLAN)]
    assert all(0.15 < firsts.count(mode.name) / len(firsts) < 0.25 for mode in modes)
    one = next(passes(PLAN))
    assert one.order(modes, 5) == one.order(modes, 5)
    assert sorted(mode.name for mode in one.order(modes, 5)) == sorted(PLAN.ways)


# -- the report


def test_a_row_is_made_of_all_passes_of_its_cell() -> None:
    found = sweep_report([pass_result(one) for one in passes(PLAN)])
    assert [(row.cell, row.way) for row in found.rows] == [(cell, way) for cell in PLAN.cells for way in PLAN.ways]
    assert found.passes_done == found.passes_planned
    row = next(row for row in found.rows if row.way == "rounds")
    assert row.answers == 12
    assert row.speed == pytest.approx(6)
    assert row.over_cloud_only.value == pytest.approx(2)
    assert (row.bytes_up, row.bytes_down) == (100, 10)
    assert row.steps_per_token == pytest.approx(12 / 36)
    assert row.acceptance_length == pytest.approx(4)
    assert row.thrown_away == pytest.approx(0.25)
    assert row.edge_thrown_away == pytest.approx(0.4)
    assert row.in_rounds == 1
    assert row.gap_p50_ms == pytest.approx(125)
    assert [w.ratio.value for w in found.worth] == pytest.approx([1.6] * 4)
    assert [w.cell for w in found.worth] == PLAN.cells


def test_the_bound_of_the_policy_is_that_of_the_best_mode_and_never_below_cloud_only() -> None:
    found = sweep_report([pass_result(one) for one in passes(PLAN)])
    for cell in PLAN.cells:
        bound = {row.way: row.allowed for row in found.rows if row.cell == cell}
        assert bound["edge"] is None
        assert bound["cloud"] == 1
        assert bound["auto"] == max(1, bound["rounds"] or 0)
        assert (bound["rounds"] or 0) >= (bound["rounds-not-ahead"] or 1)


def test_without_the_modes_that_the_policy_chose_among_its_bound_is_unknown() -> None:
    found = peer_report(dict.fromkeys(PLAN.cells, 0.5))
    assert {row.allowed for row in found.rows if row.way == "auto"} == {None}


def test_one_different_character_in_a_lossless_answer_is_counted_and_reported() -> None:
    entries = [pass_result(one) for one in passes(PLAN)]
    assert "0 of 144 lossless answers differ" in tables.conclusion(sweep_report(entries))
    wrong = entries[3].blocks[1].answers[2]
    wrong.text = "a b d"
    entries[3].blocks[4].answers[0].text = "the edge may differ"
    found = sweep_report(entries)
    assert found.lossless_differences == 1
    assert "1 of 144 lossless answers differ" in tables.conclusion(found)
    assert [(row.cell, row.way) for row in found.rows if row.differences and row.lossless] == [
        (entries[3].what.cell, "rounds")
    ]


def test_sampled_answers_are_not_said_to_differ() -> None:
    found = sweep_report([pass_result(one) for one in passes(PLAN)])
    found.plan = msgspec.structs.replace(PLAN, temperature=0.8)
    assert "answers differ" not in tables.conclusion(found)


def test_cells_without_results_are_left_out(tmp_path: Path) -> None:
    one = next(passes(PLAN))
    found = sweep_report([pass_result(one)])
    assert {row.cell for row in found.rows} == {one.cell} == {NetworkCell(0, 10, 1)}
    for so_far in (found, sweep_report([])):
        assert len(tables.ratios(so_far).rows) == len({row.cell for row in so_far.rows})
        for grid in of_sweep(so_far).grids:
            assert len(grid.drawings) == len({row.cell for row in so_far.rows})
            assert grid.title in panel_grid.write(grid, tmp_path).read_text()


def test_the_report_says_of_each_cell_whether_an_edge_drafter_is_faster_than_a_peer() -> None:
    near, loaded, far, busy = PLAN.cells
    found = peer_report({near: 0.2, loaded: 0.8, far: 0.4, busy: 0.8})
    assert [(one.cell, one.ratio.value) for one in found.instead if one.part == "ngram"] == [
        (near, pytest.approx(0.5)), (loaded, pytest.approx(2)), (far, pytest.approx(1)), (busy, pytest.approx(2)),
    ]  # fmt: skip
    over_cloud, over_ngram = tables.verdicts(found)
    assert over_cloud == "than cloud only: faster in 4 of 4 cells"
    assert f"faster in 2 of 4 cells ({loaded.title} | {busy.title})" in over_ngram
    assert f"slower in 1 of 4 cells ({near.title})" in over_ngram
    assert f"no clear difference in 1 of 4 cells ({far.title})" in over_ngram
    document = of_sweep(found)
    assert over_ngram in document.summary[-1].points
    assert [row[0] for row in document.tables[0].rows] == [cell.title for cell in PLAN.cells]
    assert tables.verdicts(sweep_report([])) == []


def test_what_a_peer_answers_otherwise_is_shown_but_breaks_no_promise() -> None:
    found = peer_report(dict.fromkeys(PLAN.cells, 0.8))
    assert {row.way for row in found.rows if row.lossless} == {"cloud", "auto"}
    assert all(row.allowed is None for row in found.rows if row.way == "ngram"), "its costs are not known"
