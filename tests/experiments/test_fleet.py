"""A fleet of simulated edges: fair shares, what its report says of made-up runs, and its edges on fake clouds."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.fake_cloud import FakeCloud, serving
from benchmarks.toy_model import verify
from common.config_cloud import AdmissionConfig, CloudConfig, CloudKeyConfig
from common.config_values import Secret
from common.errors import EndpointError
from experiments.fleet import __main__ as fleet
from experiments.fleet import report as fleet_report
from experiments.fleet.load import DraftedAnswer, DraftedRound, FleetTally, RoundTime, TenantLoad
from experiments.fleet.report import FleetReport, fair_shares
from experiments.harness.environment import environment
from experiments.report.document import ReportFiles
from tests.cloud.toy_engine import STATELESS, ToyEngine, toy_cloud

QUICK = TenantLoad("quick", 1.0, edges=3, draft_ms=0.1)
NIGHT = TenantLoad("night", 1.0, edges=1, draft_ms=0.1, batch=True)


def test_who_asks_for_less_than_its_share_gets_it_and_the_rest_is_shared_by_weight() -> None:
    weights = {"gold": 3.0, "silver": 1.0, "small": 1.0}
    wants_all = dict.fromkeys(weights, math.inf)
    assert fair_shares(100, wants_all, weights) == pytest.approx({"gold": 60, "silver": 20, "small": 20})
    assert fair_shares(100, wants_all | {"small": 4}, weights) == pytest.approx({"gold": 72, "silver": 24, "small": 4})
    assert fair_shares(100, {"gold": 10, "silver": 5, "small": 4}, weights) == {"gold": 10, "silver": 5, "small": 4}
    assert fair_shares(0, wants_all, weights) == dict.fromkeys(weights, 0.0)


def made_up(rounds: dict[str, int], loads: Sequence[TenantLoad], seconds: float = 100) -> FleetTally:
    """Rounds that take 0.2 s, half of it in the engine, after drafts of 0.4 s."""
    tally = FleetTally(turn_seconds=0.1)
    for load in loads:
        count = rounds[load.name]
        tally.rounds += [RoundTime(seconds * n / count, load.name, 0.2) for n in range(count)]
        tally.paused[load.name] = 0.4 * count
        tally.answers[load.name, "answered"] = count // 4
    return tally


def test_a_starved_tenant_shows_and_one_that_asks_little_does_not() -> None:
    loads = [TenantLoad(name, 1.0, edges, 35) for name, edges in (("flood", 40), ("starved", 40), ("small", 1))]
    found = {
        one.load.name: one
        for one in fleet_report.results(made_up({"flood": 1500, "starved": 500, "small": 160}, loads), loads, 100)
    }
    assert found["small"].demand == pytest.approx(100 / 0.5)
    assert found["small"].share == pytest.approx(0.8)
    rest = (2160 - 100 / 0.5) / 2
    assert found["starved"].share == pytest.approx(500 / rest)
    assert found["flood"].share == pytest.approx(1500 / rest)


def test_the_report_names_the_tenant_with_the_least_share_and_has_plots_over_time(tmp_path: Path) -> None:
    loads = [QUICK, TenantLoad("slow", 1.0, 3, 35), NIGHT]
    tally = made_up({"quick": 900, "slow": 300, "night": 10}, loads)
    report = FleetReport(
        environment=environment(),
        options={"program": "-m experiments.fleet"},
        seconds=100,
        tenants=fleet_report.results(tally, loads, 100),
        windows=fleet_report.windows(tally.rounds, 100),
    )
    written = fleet_report.write(report, ReportFiles(tmp_path, fleet_report.NAME))
    assert "slow has 0.50 of its fair share, less than 0.8" in [sentence.text for sentence in written.summary]
    assert {path.name for path in tmp_path.glob("*.svg")} == {"fleet_verify.svg", "fleet_memory.svg"}
    assert [panel.title for panel in written.grids[0].panels] == ["people", "batches"]
    assert len(report.windows["quick"]) == fleet_report.WINDOWS


def replayed(prompt: list[int], drafts: Sequence[int] = (3, 2, 4)) -> DraftedAnswer:
    committed, rounds = list(prompt), []
    for length in drafts:
        right = verify(committed, [], length).token_ids
        draft = [*right[:-1], right[-1] + 1]
        rounds.append(DraftedRound(draft, verify(committed, draft, 1).token_ids))
        committed += rounds[-1].committed
    return DraftedAnswer(prompt, rounds)


ANSWERS = [replayed([5, 6, number]) for number in range(9, 40)]


async def run(*clouds: FakeCloud, answers: Sequence[DraftedAnswer] = ANSWERS) -> FleetTally:
    tally, _ = await fleet.run([QUICK, NIGHT], [cloud.url for cloud in clouds], answers, 1.5)
    return tally


async def test_simulated_edges_get_the_recorded_verdicts_from_all_clouds_and_only_batches_say_so() -> None:
    async with serving() as one, serving() as other:
        began = time.monotonic()
        tally = await run(one, other)
        assert time.monotonic() - began < 60
    asked = [*one.asked, *other.asked]
    assert one.asked
    assert other.asked
    assert len(tally.rounds) == len(asked)
    assert {outcome for _, outcome in tally.answers} == {"answered"}
    batches = sum(1 for each in tally.rounds if each.tenant == "night")
    assert sum(each.priority > 0 for each in asked) == batches > 0


async def test_a_refused_edge_counts_as_refused_and_another_verdict_as_wrong() -> None:
    async with serving() as cloud:
        cloud.full = True
        assert {outcome for _, outcome in (await run(cloud)).answers} == {"refused"}
        cloud.full = False
        wrong = [DraftedAnswer([5], [DraftedRound([7], [99])])]
        assert {outcome for _, outcome in (await run(cloud, answers=wrong)).answers} == {"wrong"}


async def test_a_fleet_knows_its_clouds_turns_by_its_key_and_takes_no_refusal_for_zeros() -> None:
    keys = [CloudKeyConfig(api_key=Secret(QUICK.key))]
    cloud = CloudConfig(draft_verifier=STATELESS.draft_verifier, admission=AdmissionConfig(keys=keys))
    async with toy_cloud(ToyEngine(), cloud) as http:
        async with http.get("/health") as reply:
            url = str(reply.url.origin())
        turns, seconds = await fleet.engine_turns([url, url], QUICK)
        assert (turns, seconds > 0) == (2, True), "one turn, of a cloud that is named twice"
        with pytest.raises(EndpointError, match="401"):
            await fleet.engine_turns([url], NIGHT)


def test_a_smaller_fleet_has_the_same_tenants() -> None:
    small = fleet.of_size(fleet.LOADS, 10)
    assert [load.name for load in small] == [load.name for load in fleet.LOADS]
    assert min(load.edges for load in small) == 1
    assert fleet.of_size(fleet.LOADS, 100) == list(fleet.LOADS)
