"""A small ablation run on real engines: each feature has its effect, counts repeat, answers and servers count alike."""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from cli.demo import free_ports
from cli.server_process import ServerProcess
from cli.supervisor import Supervisor
from common.files.installation import PROJECT
from experiments.harness import experiment
from experiments.harness.delay_proxy import DelayProxy
from experiments.harness.servers import EdgeSite
from experiments.report import schema
from experiments.report.schema import AnswerRow, ExperimentReport
from experiments.setup import ablations
from experiments.setup.configurations import Needs
from tests.conftest import Servers
from tests.experiments.test_ablation_plan import A_RUN

pytestmark = pytest.mark.asyncio(loop_scope="session")

QUESTIONS = 6
Fleet = Callable[..., contextlib.AbstractAsyncContextManager[dict[Needs, EdgeSite]]]


def edges_before(servers: Servers) -> Fleet:
    """In place of experiments.harness.servers.fleet: new edges before the cloud of the test run."""

    @contextlib.asynccontextmanager
    async def fleet(
        args: argparse.Namespace, settings: Sequence[str], wanted: Iterable[Needs], report: Callable[[str], None]
    ) -> AsyncIterator[dict[Needs, EdgeSite]]:
        needed = list(dict.fromkeys(wanted))
        host, port = servers.cloud_url.removeprefix("http://").split(":")
        async with DelayProxy(host, int(port)) as network:
            edges = []
            for number, (needs, edge_port) in enumerate(zip(needed, free_ports(len(needed)), strict=True)):
                assert not needs.cloud, "presets need one cloud"
                given = [*settings, *needs.edge, f"communication.cloud_endpoint={network.url}"]
                where = ["--host", "127.0.0.1", "--port", str(edge_port)]
                log = PROJECT / "logs" / f"ablation-edge-{number}.log"
                options = [*where, *(word for setting in given for word in ("--set", setting))]
                edges.append(ServerProcess("edge", "start_edge.py", f"http://127.0.0.1:{edge_port}", options, log))
            async with Supervisor(edges, report).running():
                yield {
                    needs: EdgeSite(edge.url, servers.cloud_url, network)
                    for needs, edge in zip(needed, edges, strict=True)
                }

    return fleet


async def run(servers: Servers, folder: Path, patch: pytest.MonkeyPatch, *flags: str) -> ExperimentReport:
    """All presets, on new edges before the cloud of the test run."""
    patch.setattr(experiment, "fleet", edges_before(servers))
    options = ["--output", str(folder), "--repeats", "1", "--seed", "7", *flags]
    args = experiment.parser("", QUESTIONS, 1).parse_args(options)
    base = experiment.base_config(args)
    chosen = ablations.chosen(None, [])
    return await experiment.run(args, chosen, base, Console(quiet=True), A_RUN)


@pytest.fixture(scope="session")
async def reports(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> list[ExperimentReport]:
    """Two runs with one seed."""
    with pytest.MonkeyPatch.context() as patch:
        return [await run(servers, tmp_path_factory.mktemp("ablation"), patch) for _ in range(2)]


async def test_two_runs_with_one_seed_agree_in_every_count(reports: list[ExperimentReport]) -> None:
    first, second = reports
    counted = [name for name, info in first.measures.items() if info.counted]
    assert len(counted) > 10
    for one, other in zip(first.configurations, second.configurations, strict=True):
        for name in counted:
            assert one.measures.get(name) == other.measures.get(name), (one.name, name)
        texts = [[row.text for row in report.rows[one.name]] for report in reports]
        assert texts[0] == texts[1]


def close(one: float, other: float) -> bool:
    return abs(one - other) <= 0.01 * max(one, other)


async def test_servers_and_answers_count_the_same(reports: list[ExperimentReport]) -> None:
    for name, rows in reports[0].rows.items():
        for what, by_answers, by_edge in (
            ("tokens", total(rows, lambda row: row.tokens), tokens_of_edge(rows)),
            ("edge", of(rows, "edge"), counted(rows, "edge", "edge")),
            ("accepted", of(rows, "accepted"), counted(rows, "edge", "accepted")),
            ("cloud", of(rows, "cloud"), counted(rows, "edge", "cloud")),
            ("calls", total(rows, lambda row: row.cloud_calls), counted(rows, "edge", "calls")),
            ("rounds", total(rows, lambda row: row.rounds), counted(rows, "edge", "rounds")),
            ("steps", total(rows, lambda row: row.cloud_steps), counted(rows, "edge", "cloud_steps")),
            ("bytes up", total(rows, lambda row: row.bytes_up), counted(rows, "edge", "bytes_up")),
            ("bytes down", total(rows, lambda row: row.bytes_down), counted(rows, "edge", "bytes_down")),
            ("cloud's steps", total(rows, lambda row: row.cloud_steps), counted(rows, "cloud", "steps")),
            ("cloud's drafted", total(rows, lambda row: row.drafted), counted(rows, "cloud", "drafted")),
            ("cloud's accepted", total(rows, lambda row: row.accepted), counted(rows, "cloud", "accepted")),
            ("cloud's tokens", total(rows, lambda row: row.tokens) - of(rows, "edge"), counted(rows, "cloud", "drawn")),
        ):
            assert close(by_answers, by_edge), (name, what, by_answers, by_edge)
        bodies, network = total(rows, lambda row: row.bytes_up), counted(rows, "network", "bytes_up")
        assert network > bodies if bodies else network == 0, "headers, and nothing where nothing is asked"


def total(rows: list[AnswerRow], value: Callable[[AnswerRow], float]) -> float:
    return sum(map(value, rows))


def of(rows: list[AnswerRow], provenance: str) -> float:
    return total(rows, lambda row: row.provenance[provenance])


def counted(rows: list[AnswerRow], side: str, name: str) -> float:
    return total(rows, lambda row: getattr(getattr(row.counts, side), name))


def tokens_of_edge(rows: list[AnswerRow]) -> float:
    return sum(counted(rows, "edge", name) for name in ("edge", "accepted", "recovered", "bonus", "cloud"))


async def test_each_switch_changes_the_measure_that_its_feature_is_for(reports: list[ExperimentReport]) -> None:
    by_name = {one.name: one for one in reports[0].configurations}

    def value(name: str, measure: str) -> float:
        return by_name[name].measures[measure].value

    assert value("no_confidence", "cloud_rate") == value("cloud_only", "cloud_rate") == 1
    assert 0 < value("baseline", "cloud_rate") < 1
    assert value("edge_only", "cloud_rate") == value("edge_only", "cloud_calls") == 0
    assert value("no_draft_verify", "cloud_steps") > value("baseline", "cloud_steps")
    assert value("no_draft_verify", "accepted_tokens") == 0 < value("baseline", "accepted_tokens")
    for side in ("edge", "cloud"):
        assert value("no_kv_cache", f"{side}_recomputed") > 2 * value("baseline", f"{side}_recomputed")
        assert value("no_kv_cache", f"{side}_kv_hit_rate") == 0 < value("baseline", f"{side}_kv_hit_rate")
    assert value("no_http_optimizations", "bytes_up") > 1.5 * value("baseline", "bytes_up")
    assert value("baseline", "connections") == 0
    assert value("no_http_optimizations", "connections") == value("no_http_optimizations", "cloud_calls") > 0
    assert value("no_confidence", "agreement") == 1, "lossless: the cloud's own answers"
    assert not any(one.unchanged for one in reports[0].configurations)
    assert not any(one.failures for one in reports[0].configurations)


async def test_an_override_without_effect_changes_no_count_even_with_a_server_of_its_own(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = ablations.Ablation(
        name="same", description="", config_overrides={"edge": {"confidence": {"threshold": 0.8, "top_k": 9}}}
    )
    monkeypatch.setattr(ablations, "chosen", lambda *_: [ablations.BASELINE, same])
    found = await run(servers, tmp_path, monkeypatch)
    apart = {name: one.value for name, one in found.configurations[1].differences.items()}
    counts = {name for name, info in found.measures.items() if info.counted}
    assert len(counts & apart.keys()) > 10
    assert not any(apart[name] for name in counts & apart.keys())
    assert [row.text for row in found.rows["same"]] == [row.text for row in found.rows["baseline"]]


@pytest.mark.long
async def test_the_command_keeps_what_was_measured_when_a_server_dies_and_goes_on(tmp_path: Path) -> None:
    small = "--only no_confidence --questions 3 --repeats 2 --max-tokens 24 --output".split()
    journal = tmp_path / "ablation_report.unfinished.jsonl"
    process = await command(*small, str(tmp_path))
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert process.returncode is None
        await asyncio.sleep(0.05)
    for child in psutil.Process(process.pid).children():
        if any("start_edge" in word for word in child.cmdline()):
            child.kill()
    said = (await process.communicate())[1].decode()
    assert process.returncode == 1
    assert "the edge server" in said and "are kept, --resume goes on" in said and "Traceback" not in said
    measured = journal.read_bytes().count(b"\n") - 1
    assert measured >= 3 and not (tmp_path / "ablation_report.json").exists()
    again = await command(*small, str(tmp_path), "--resume")
    await again.communicate()
    found = schema.read(tmp_path / "ablation_report.json")
    assert (again.returncode, [one.answers for one in found.configurations]) == (0, [6, 6])
    assert not journal.exists()


async def command(*flags: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "ablation_experiments.py", *flags, cwd=PROJECT, stderr=asyncio.subprocess.PIPE
    )
