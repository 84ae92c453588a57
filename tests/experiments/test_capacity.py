"""Capacity: the model of many clients, what a report says of made-up points, recorded answers, and real servers."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.fake_cloud import serving
from benchmarks.toy_model import verify
from common.cloud_client.pool import CloudPool
from common.config_schema import CommunicationConfig, Config
from common.errors import ConfigError
from common.types import GREEDY
from experiments.capacity import __main__ as capacity
from experiments.capacity import clients, model
from experiments.capacity import report as capacity_report
from experiments.capacity.clients import CapacityPoint, stream_answers
from experiments.capacity.model import STREAMING, ClientWork, StepCost
from experiments.capacity.recording import Recorder, RecordingVerifier
from experiments.capacity.report import CapacityReport
from experiments.fleet.load import DraftedAnswer, DraftedRound, FleetTally, TenantLoad
from experiments.harness.environment import environment
from experiments.report.document import ReportFiles
from tests.conftest import Servers
from tests.waiting import until

EIGHT = ClientWork([DraftedAnswer([5], [DraftedRound([1] * 8, [1] * 9), DraftedRound([1] * 8, [1] * 9)])], 0.0)
"""Drafts that take no time, all accepted."""
UNEVEN = [
    DraftedAnswer([5], [DraftedRound([1] * 3, [1] * 4), DraftedRound([1] * 6, [1] * 2)]),
    DraftedAnswer([5], [DraftedRound([1] * 8, [1] * 9, [1] * 5), DraftedRound([], [], [1] * 2)]),
]
"""Two rounds of one answer, one round and an end without a verify of another."""


# -- the model


@pytest.mark.parametrize("number", [1, 7, 100])
def test_clients_that_never_pause_are_all_in_every_step(number: int) -> None:
    cost = StepCost(0.020, 0.003)
    step = 0.020 + 0.003 * number
    assert model.speed(STREAMING, cost, number) == pytest.approx(1 / step)
    assert model.speed(EIGHT, cost, number) == pytest.approx(9 / step)


def test_a_lone_client_pays_its_pause_and_its_step() -> None:
    work = ClientWork([UNEVEN[0]], draft=0.010)
    expected = 6 / (9 * 0.010 + 2 * 0.023)
    assert model.speed(work, StepCost(0.020, 0.003), 1) == pytest.approx(expected, rel=0.02)


def test_what_many_clients_get_together_is_bounded_by_what_a_client_adds_to_a_step() -> None:
    work, cost = ClientWork(UNEVEN, draft=0.010), StepCost(0.020, 0.003)
    together = 1000 * model.speed(work, cost, 1000)
    rounds = together / (work.tokens / work.verified)
    assert 0.9 / 0.003 < rounds < 1 / 0.003


def test_pauses_of_some_clients_hide_behind_the_steps_of_others() -> None:
    paused, cost = ClientWork(UNEVEN, draft=0.010), StepCost(0.020, 0.003)
    at_once = ClientWork(UNEVEN, draft=0.0)
    kept = [model.speed(work, cost, 16) / model.speed(work, cost, 1) for work in (paused, at_once)]
    assert kept[0] > 1.2 * kept[1]


@pytest.mark.parametrize("work", [STREAMING, EIGHT, ClientWork(UNEVEN, 0.004)], ids=["stream", "rounds", "uneven"])
def test_a_fit_finds_the_cost_that_made_the_measurements(work: ClientWork) -> None:
    cost = StepCost(0.015, 0.002)
    found = model.fit(work, {number: model.speed(work, cost, number, seed=1) for number in (1, 4, 16, 64)})
    assert found.seconds(1) == pytest.approx(cost.seconds(1), rel=0.05)
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


# -- the report


def points(speeds: dict[int, float], wrong: int = 0) -> list[CapacityPoint]:
    answers = Counter({"answered": 10, "wrong": wrong})
    return [CapacityPoint(clients=n, speed=speed, busy=0.5, answers=answers) for n, speed in speeds.items()]


@pytest.fixture(scope="module")
def made_up() -> CapacityReport:
    """A cloud alone, and edges of which many more have the cloud's speed."""
    edges = ClientWork(EIGHT.answers, draft=0.001)
    counts = (1, 2, 4, 8, 16, 32, 64)
    alone = {n: model.speed(STREAMING, StepCost(0.016, 0.004), n) for n in counts}
    ours = {n: model.speed(edges, StepCost(0.016, 0.004), n) for n in counts}
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


# -- clients and recordings


def test_tokens_outside_the_counted_seconds_do_not_count() -> None:
    tally = FleetTally(commits=[(0.5, 100), (1.0, 6), (2.9, 4), (3.0, 100)])
    tally.answers["stream", "answered"] = 3
    found = clients.point(tally, clients=5, began=1.0, seconds=2.0, spent=0.5)
    assert (found.speed, found.busy) == (1.0, 0.25)
    assert found.answers == {"answered": 3}


async def test_a_client_that_fails_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "WARM_SECONDS", 0.01)

    async def fails(number: int, tally: FleetTally) -> None:
        raise ConfigError("no such cloud")

    with pytest.raises(ConfigError, match="no such cloud"):
        await clients.measure(fails, 2, 0.01)


async def test_a_recording_has_what_the_edge_kept_before_each_draft_and_after_the_last() -> None:
    async with serving() as cloud, CloudPool(CommunicationConfig(cloud_endpoint=cloud.url)) as clouds:
        prompt = [5, 6]
        recording = RecordingVerifier(clouds, prompt)
        committed = [*prompt, 30, 31]
        first = verify(committed, [], 1).token_ids
        committed += (await recording.verify(committed, first, GREEDY, 1)).token_ids
        rounds = recording.completed([*committed, 40])
    assert [one.kept for one in rounds] == [[30, 31], [40]]
    assert rounds[0].draft == first == rounds[0].committed[: len(first)]
    assert (rounds[1].draft, rounds[1].committed) == ([], [])
    assert DraftedAnswer(prompt, rounds).token_ids == [*committed[2:], 40]


@pytest.mark.parametrize("text", ["2,4,8", "1,8", "0,1,2"])
def test_numbers_of_clients_need_a_lone_one_and_enough_for_a_fit(text: str) -> None:
    with pytest.raises(ConfigError):
        capacity.counts_of(text)
    assert capacity.counts_of("8,1,1,64") == [1, 8, 64]


def test_the_cloud_alone_is_always_compared() -> None:
    assert capacity.systems_of("gated,ngram") == ["cloud", "gated", "ngram"]
    with pytest.raises(ConfigError, match="turbo"):
        capacity.systems_of("turbo")


async def test_recorded_answers_are_repeated_by_streams_and_by_simulated_edges(servers: Servers) -> None:
    """A real edge and a real cloud: every repeated answer, lossless and gated, is the recorded one."""
    recorder = Recorder(servers.edge, servers.clouds, Config())
    questions = ["What is AI?", "Explain gravity", "Can a whale sing?"]
    lossless, gated = [await recorder.record(questions, gate, 24) for gate in (False, True)]
    assert recorder.estimates.draft_seconds > 0
    assert sum(len(one.kept) for answer in gated for one in answer.rounds) > 0
    load, where = TenantLoad("one", 1, edges=1, draft_ms=0.1), CommunicationConfig(cloud_endpoint=servers.cloud_url)
    for client in (
        partial(stream_answers, servers.cloud, lossless, 0),
        partial(capacity.simulated_edge, load, where, lossless, 0),
        partial(capacity.simulated_edge, load, where, gated, 0),
    ):
        assert set(await until_answered(client)) == {"answered"}


async def until_answered(client: Callable[[FleetTally], Coroutine[None, None, None]]) -> Counter[str]:
    """The outcomes of a client's first answers."""
    tally = FleetTally()
    asking = asyncio.create_task(client(tally))
    try:
        await until(lambda: asking.done() or tally.answers.total() >= 4)
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    return Counter({outcome: number for (_, outcome), number in tally.answers.items()})
