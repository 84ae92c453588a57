"""What a network sweep says follows from what was measured: exactness, ratios, bounds. No servers."""

import html
import random
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from common.types import Collaboration
from experiments.counters.cloud import CloudCounts
from experiments.harness.load import TimedAnswer
from experiments.network import bounds, pages, plots, view
from experiments.network.bounds import Costs
from experiments.network.passes import PASS_QUESTIONS, Block, NetworkCell, Pass, PassResult, SweepPlan, passes
from experiments.network.plots import SweepLine, SweepPanel
from experiments.network.report import NetworkReport, report
from experiments.network.ways import WAYS

COSTS = Costs(round_trip=0.05, tokens=40, step=0.005, draft=0.02, rounds=8, verify=0.008, steps=20, draft_step=0.007)
PLAN = SweepPlan(
    round_trips=[0, 50], uplinks=[10], clients=[1, 4], ways=["cloud", "rounds", "rounds-not-ahead", "auto", "edge"],
    prompts=6, repeats=2, max_tokens=9, seed=0,
)  # fmt: skip

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


def test_each_way_is_first_about_as_often_as_any_other() -> None:
    ways = [WAYS[name] for name in PLAN.ways]
    firsts = [one.order(ways, seed)[0].name for seed in range(100) for one in passes(PLAN)]
    assert all(0.15 < firsts.count(way.name) / len(firsts) < 0.25 for way in ways)
    one = next(passes(PLAN))
    assert one.order(ways, 5) == one.order(ways, 5)
    assert sorted(way.name for way in one.order(ways, 5)) == sorted(PLAN.ways)


# -- the report


def answer(question: int, seconds: float, text: str = "a b c", **told: int) -> TimedAnswer:
    return TimedAnswer(
        question=question,
        seconds=seconds,
        tokens=3,
        text=text,
        finish_reason="stop",
        arrivals=[(seconds / 2, 1), (seconds, len(text) - 1)],
        collaboration=Collaboration(**told),  # type: ignore[arg-type]
    )


def block(way: str, one: Pass, seconds: float, **told: int) -> Block:
    answers = [answer(n, seconds, **told) for n in range(one.last - one.first)]
    counts = CloudCounts(steps=6, computed=30, decode_seconds=0.6, decode_steps=6, verify_seconds=1, verifies=10)
    return Block(way=way, seconds=2 * seconds, answers=answers, counts=counts, bytes_up=600, bytes_down=60)


def done(one: Pass) -> PassResult:
    rounds = {"rounds": 2, "drafted": 8, "accepted": 6, "edge_latency_ms": 20, "edge_drawn": 10, "edge_wasted": 4}
    return PassResult(
        one,
        [
            block("cloud", one, 1.0),
            block("rounds", one, 0.5, **rounds),
            block("rounds-not-ahead", one, 0.8, **rounds),
            block("auto", one, 0.4, **rounds),
            block("edge", one, 0.1),
        ],
    )


def made(entries: list[PassResult]) -> NetworkReport:
    return report(PLAN, entries, len(list(passes(PLAN))), token_ends=lambda text: [1, 3, 5])


def test_a_row_is_made_of_all_passes_of_its_cell() -> None:
    found = made([done(one) for one in passes(PLAN)])
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


def test_the_bound_of_the_policy_is_that_of_the_best_way_and_never_below_cloud_only() -> None:
    found = made([done(one) for one in passes(PLAN)])
    for cell in PLAN.cells:
        bound = {row.way: row.allowed for row in found.rows if row.cell == cell}
        assert bound["edge"] is None
        assert bound["cloud"] == 1
        assert bound["auto"] == max(1, bound["rounds"] or 0)
        assert (bound["rounds"] or 0) >= (bound["rounds-not-ahead"] or 1)


def test_one_other_character_in_a_lossless_answer_is_counted_and_said() -> None:
    entries = [done(one) for one in passes(PLAN)]
    assert "0 of 144 lossless answers differ" in view.conclusion(made(entries))
    wrong = entries[3].blocks[1].answers[2]
    wrong.text = "a b d"
    entries[3].blocks[4].answers[0].text = "the edge may differ"
    found = made(entries)
    assert found.lossless_differences == 1
    assert "1 of 144 lossless answers differ" in view.conclusion(found)
    assert [(row.cell, row.way) for row in found.rows if row.differences and row.lossless] == [
        (entries[3].what.cell, "rounds")
    ]


def test_cells_not_measured_yet_are_left_out(tmp_path: Path) -> None:
    one = next(passes(PLAN))
    found = made([done(one)])
    assert {row.cell for row in found.rows} == {one.cell} == {NetworkCell(0, 10, 1)}
    for so_far in (found, made([])):
        view.draw(so_far, tmp_path)
        assert view.ratios(so_far).row_count == len({row.cell for row in so_far.rows})


def test_the_pages_have_a_panel_for_each_bandwidth_and_number_of_clients_and_all_figures() -> None:
    found = made([done(one) for one in passes(PLAN)])
    page = pages.to_html(found)
    panels = len(PLAN.uplinks) * len(PLAN.clients)
    assert page.count("<svg") == panels * len(pages.PLOTS)
    assert page.count("<script") == 0 and "http://" not in page
    for text in (html.unescape(page), pages.to_markdown(found)):
        assert view.conclusion(found) in text
        assert found.environment.cpu in text
        for row in found.rows:
            assert f"{row.over_cloud_only.value:.2f}" in text
    for so_far in (made([done(next(passes(PLAN)))]), made([])):
        assert pages.to_html(so_far).count("<svg") == (3 if so_far.rows else 0)
        assert pages.to_markdown(so_far)


def test_plots_are_written_as_svg_and_png(tmp_path: Path) -> None:
    line = SweepLine("way", "C0", [0, 1], [1, 2], [0.5, 1.5], [1.5, 2.5], [2, 3])
    svg, png = plots.draw(
        tmp_path / "plot", "title", [[SweepPanel("left", [line]), SweepPanel("right")]], "x", "y", level=1
    )
    assert png.read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in svg.read_bytes()
