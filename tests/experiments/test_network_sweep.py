"""A small network sweep from end to end, with a real edge, a real cloud and the simulated network between them."""

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest

from cli import terminal
from cli.args import load_config
from cli.demo import free_ports
from cli.server_process import ServerProcess
from common.errors import ConfigError
from common.files.installation import PROJECT
from experiments import network_sweep
from experiments.harness.delay_proxy import DelayProxy
from experiments.harness.journal import Journal
from experiments.harness.options import numbers
from experiments.harness.servers import AskedServer, CloudSide, Site
from experiments.network.passes import NetworkCell, PassResult, SweepPlan, passes
from experiments.network.report import report
from experiments.network.schema import ModeRow, NetworkReport
from experiments.network.sweep import NetworkSweep
from experiments.network_sweep import parser, plan_of, questions_of, server_settings, token_ends, write
from experiments.questions.workload import questions
from experiments.report.document import ReportFiles
from tests.conftest import CLOUD_MODEL, Servers

LESS_THAN_A_REQUEST = 40
"""Bytes for each answer that hold no request (its first line and `Host` take more), but the pings of a stream that
stays open between answers: 8 with their pong, once in some seconds: the slower the machine, the more there are."""
PLAN = SweepPlan(
    round_trips=[0, 30], uplinks=[10], clients=[2], ways=["cloud", "edge", "rounds", "gated", "direct", "ngram"],
    prompts=6, repeats=1, max_tokens=48, seed=0,
)  # fmt: skip


@pytest.fixture(scope="session")
async def swept(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NetworkReport]:
    """The folder and the report of the sweep. Its own edge reaches the session's cloud through a proxy.

    So does a peer, for which the same cloud stands, through another one.
    """
    folder = tmp_path_factory.mktemp("sweep")
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    host, cloud_port = servers.cloud_url.removeprefix("http://").split(":")
    async with DelayProxy(host, int(cloud_port)) as network, DelayProxy(host, int(cloud_port)) as beside:
        flags = ["--host", "127.0.0.1", "--port", str(port), "--set", f"communication.cloud_endpoint={network.url}"]
        edge = ServerProcess("edge", "start_edge.py", url, flags, PROJECT / "logs" / "sweep-edge.log")
        try:
            await edge.start()
            await edge.wait_ready()
            urls = {AskedServer.EDGE: url, AskedServer.CLOUD: network.url, AskedServer.NGRAM: beside.url}
            peers = {AskedServer.NGRAM: CloudSide(servers.cloud_url, beside)}
            site = Site(urls, servers.cloud_url, network, peers)
            sweep = NetworkSweep(PLAN, questions(PLAN.prompts, PLAN.seed), site)
            journal = Journal(folder / "passes.jsonl", PLAN, PassResult, resume=False)
            for one in passes(PLAN):
                journal.add(await sweep.run_pass(one, lambda _: None))
            await sweep.aclose()
        finally:
            await edge.stop()
    found = report(PLAN, journal.entries, len(journal.entries), token_ends(str(CLOUD_MODEL)))
    write(found, ReportFiles(folder, "report"), terminal.console())
    return folder, found


def rows(found: NetworkReport, mode: str) -> list[ModeRow]:
    return [row for row in found.rows if row.way == mode]


async def test_every_lossless_answer_is_the_clouds_in_every_cell(swept: tuple[Path, NetworkReport]) -> None:
    found = swept[1]
    assert found.lossless_answers == 2 * 2 * PLAN.prompts
    assert found.lossless_differences == 0
    assert not any(row.degraded for row in found.rows)


async def test_traffic_and_work_of_the_cloud_are_counted(swept: tuple[Path, NetworkReport]) -> None:
    found = swept[1]
    for row in rows(found, "edge"):
        assert row.body_bytes_up == row.body_bytes_down == row.steps_per_token == row.computed_per_token == 0
        assert row.bytes_up + row.bytes_down < LESS_THAN_A_REQUEST
    for row in rows(found, "rounds"):
        assert row.body_bytes_up < row.bytes_up and row.body_bytes_down < row.bytes_down
        assert row.acceptance_length is not None and row.acceptance_length > 1
    for plain, speculated in zip(rows(found, "cloud"), rows(found, "rounds"), strict=True):
        assert 0 < speculated.steps_per_token < plain.steps_per_token
        assert plain.computed_per_token >= 1


async def test_a_peer_is_measured_on_its_own_network_and_its_answers_are_compared(
    swept: tuple[Path, NetworkReport],
) -> None:
    for peer, direct in zip(rows(swept[1], "ngram"), rows(swept[1], "direct"), strict=True):
        assert peer.bytes_up == pytest.approx(direct.bytes_up, rel=0.2) and peer.bytes_up > LESS_THAN_A_REQUEST
        assert peer.steps_per_token > 0
        assert peer.differences == 0
        assert not peer.lossless, "only what this project promises counts as a promise"


async def test_no_token_of_the_cloud_comes_before_its_round_trip(swept: tuple[Path, NetworkReport]) -> None:
    far = [
        row
        for row in swept[1].rows
        if row.cell == NetworkCell(30, 10, 2) and row.way in ("cloud", "rounds", "direct", "ngram")
    ]
    assert len(far) == 4
    assert all(row.first_token_ms is not None and row.first_token_ms >= 30 for row in far)


async def test_the_report_is_complete_and_a_finished_sweep_has_no_passes_left(
    swept: tuple[Path, NetworkReport],
) -> None:
    folder, found = swept
    assert msgspec.json.decode((folder / "report.json").read_bytes(), type=NetworkReport) == found
    assert {path.name for path in folder.iterdir()} == {
        "passes.jsonl", "report.json", "report.md", "report.html", "tables.txt",
        "speed.svg", "bytes.svg", "steps.svg",
    }  # fmt: skip
    assert f"0 of {found.lossless_answers} lossless answers differ" in (folder / "tables.txt").read_text()
    again = Journal(folder / "passes.jsonl", PLAN, PassResult, resume=True)
    assert [entry.what for entry in again.entries] == list(passes(PLAN))


def test_the_command_line_decides_what_is_measured_and_the_servers_have_room_for_it() -> None:
    plan = plan_of(parser().parse_args(["--clients", "1,40", "--round-trips", "5", "--ways", "auto"]))
    assert plan.cells == [NetworkCell(5, uplink, clients) for uplink in (10, 20, 80) for clients in (1, 40)]
    assert plan.ways == ["cloud", "auto"]
    given = [part for setting in server_settings(plan) for part in ("--set", setting)]
    config = load_config(parser().parse_args(given))
    assert config.edge.model.sequences == 40
    assert config.cloud.draft_verifier.resident_sessions == 40
    assert config.cloud.model.dtype == "float32"


def test_data_is_asked_by_name_and_all_of_it_if_less_than_asked_for(tmp_path: Path) -> None:
    (tmp_path / "two.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    for data, count in (("general", 40), ("editing", 8), (str(tmp_path / "two.jsonl"), 2)):
        plan = plan_of(parser().parse_args(["--data", data, "--temperature", "0.8"]))
        assert (plan.temperature, plan.prompts) == (0.8, count)
        assert len(questions_of(plan)) == count


def test_peers_are_all_that_can_run_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    llama_server = tmp_path / "llama-server"
    monkeypatch.setattr(network_sweep, "LLAMA_SERVER", llama_server)
    without = plan_of(parser().parse_args(["--ways", "peers"])).ways
    assert without == ["cloud", "auto", "gated", "ngram", "draft-model"]
    llama_server.touch()
    assert plan_of(parser().parse_args(["--ways", "peers"])).ways == [*without, "llama-server"]


@pytest.mark.parametrize("flags", ["--clients 0", "--prompts 0", "--uplinks a", "--round-trips -1", "--temperature 3"])
def test_values_out_of_range_are_refused_before_anything_starts(flags: str) -> None:
    with pytest.raises(ConfigError):
        plan_of(parser().parse_args(flags.split()))
    assert numbers("1,1,2", "--x") == [1, 2]


@pytest.mark.long
async def test_the_command_starts_its_servers_and_resumes(tmp_path: Path) -> None:
    small = "--round-trips 0,5 --uplinks 10 --clients 1 --prompts 2 --ways edge,default-f4-off --output".split()
    assert await command(*small, str(tmp_path), "--minutes", "0") == 0
    made = (tmp_path / "passes.jsonl").read_bytes()
    assert made.count(b"\n") == 1, "no minutes, no pass"
    assert await command(*small, str(tmp_path)) == 1, "it is there already"
    assert await command(*small, str(tmp_path), "--resume") == 0
    found = msgspec.json.decode((tmp_path / "report.json").read_bytes(), type=NetworkReport)
    assert found.passes_done == found.passes_planned == 2
    assert (found.lossless_answers, found.lossless_differences) == (4, 0)


async def command(*flags: str) -> int:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "experiments.network_sweep", *flags, cwd=PROJECT
    )
    return await process.wait()
