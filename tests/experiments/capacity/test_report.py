"""The report of a capacity says what made-up points say. No servers."""

from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from experiments.capacity import model
from experiments.capacity import report as capacity_report
from experiments.capacity.clients import CapacityPoint
from experiments.capacity.model import STREAMING, ClientWork, StepCost
from experiments.capacity.report import CapacityReport
from experiments.fleet.load import DraftedAnswer, DraftedRound
from experiments.harness.environment import environment
from experiments.report.document import ReportFiles
from tests.experiments.capacity.works import EIGHT


def points(speeds: dict[int, float], wrong: int = 0) -> list[CapacityPoint]:
    answers = Counter({"answered": 10, "wrong": wrong})
    return [CapacityPoint(clients=n, speed=speed, busy=0.5, answers=answers) for n, speed in speeds.items()]


@pytest.fixture(scope="module")
def made_up() -> CapacityReport:
    """A cloud alone, and edges of which many more have the cloud's speed."""
    edges = ClientWork(EIGHT.answers, draft=0.001)
    counts = (1, 2, 4, 8, 16, 32, 64)
    alone = {n: model.speed(STREAMING, StepCost(0.016, 0.004), n) for n in counts}
    ours = {n: model.speed(edges, StepCost(0.016, 0.0005), n) for n in counts}
    works = {"cloud": edges, "lossless": edges}
    found = capacity_report.results(works, {"cloud": points(alone), "lossless": points(ours, wrong=1)})
    accepted = capacity_report.acceptance(edges)
    options = {"program": "-m experiments.capacity"}
    return CapacityReport(environment=environment(), options=options, draft_ms=1.0, acceptance=accepted, systems=found)


def test_clients_at_equal_speed_are_those_with_a_share_of_what_the_cloud_alone_gives_one(
    made_up: CapacityReport,
) -> None:
    alone, ours = made_up.systems
    assert alone.own == alone.equal
    assert alone.own.measured == pytest.approx(2.3, abs=0.3)  # 0.8 of a step of 20 ms: 25 ms
    assert alone.own.model == 2
    assert ours.equal.model > 3 * alone.equal.model
    assert ours.equal.measured is not None and abs(ours.equal.measured - ours.equal.model) <= 0.2 * ours.equal.model
    assert ours.own.model < ours.equal.model, "a lone client is faster than the cloud alone"


def test_the_model_is_compared_with_a_point_that_it_has_not_seen(made_up: CapacityReport) -> None:
    for one in made_up.systems:
        assert one.check == pytest.approx(1.0, abs=0.1)
        assert max(one.predicted) == capacity_report.BEYOND * 64
    stalled = {1: 50.0, 2: 45.0, 4: 38.0, 32: 0.5}
    (found,) = capacity_report.results({"cloud": EIGHT}, {"cloud": points(stalled)})
    assert found.check > 5


def test_the_report_has_the_tables_the_plot_and_the_answers_that_differ(
    made_up: CapacityReport, tmp_path: Path
) -> None:
    with (tmp_path / "printed.txt").open("w") as file:
        capacity_report.write(made_up, ReportFiles(tmp_path, capacity_report.NAME), Console(file=file, width=200))
    page = (tmp_path / "capacity_report.md").read_text()
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".html", ".svg", ".txt"}
    assert "7 of 77" in page and "0 of 70" in page
    assert "1.00 ms a token, 1.00 of them are accepted" in page
    assert "256 clients" in page
    for table in (capacity_report.capacity_table(made_up), capacity_report.speed_table(made_up)):
        assert {len(row) for row in table.rows} == {len(table.heads)}


def test_acceptance_counts_draft_tokens_up_to_the_first_other_one() -> None:
    assert capacity_report.acceptance(EIGHT) == 1
    half = ClientWork([DraftedAnswer([5], [DraftedRound([1, 2, 3, 4], [1, 2, 9]), DraftedRound([], [7])])], 0.0)
    assert capacity_report.acceptance(half) == 0.5
