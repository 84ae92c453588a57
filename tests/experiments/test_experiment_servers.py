"""Servers of an experiment: each started once, edges behind their cloud's network, early ends noticed."""

import argparse
import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest

from cli.demo import free_ports
from cli.server_process import CLOUD, EDGE, ServerProcess
from common.errors import StartError
from common.files.installation import PROJECT
from experiments.harness import servers
from experiments.harness.servers import AskedServer, Pinning, fleet, pinned_apart
from experiments.setup.configurations import Needs

pytestmark = pytest.mark.asyncio(loop_scope="function")

ARGS = argparse.Namespace(config="x.yaml", set=["edge.model.sequences=8"])


class Noted:
    """Stands for a server process and only records what would be started."""

    def __init__(self, name: str, script: str, url: str, flags: list[str], log: object, cores: object = ()) -> None:
        self.name, self.script, self.url, self.flags, self.cores = name, script, url, flags, cores

    async def exited(self) -> int:
        await asyncio.sleep(3600)
        return 0

    @property
    def settings(self) -> list[str]:
        return [value for flag, value in zip(self.flags, self.flags[1:], strict=False) if flag == "--set"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The servers that a fleet starts."""
    found: list[Any] = []

    class NotedSupervisor:
        def __init__(self, processes: list[Any], report: object) -> None:
            found.extend(processes)

        @contextlib.asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            yield

    monkeypatch.setattr(servers, "ServerProcess", Noted)
    monkeypatch.setattr(servers, "Supervisor", NotedSupervisor)
    return found


async def test_equal_needs_share_servers_and_each_cloud_has_one_network(started: list[Any]) -> None:
    plain, slow = Needs(edge=("a=1",)), Needs(cloud=("cloud.x=1",))
    async with fleet(ARGS, ["s=0"], [Needs(), plain, Needs(), slow, plain], print) as sites:
        assert [one.name for one in started] == ["cloud", "cloud-2", "edge", "edge-2", "edge-3"]
        assert {one.script for one in started} == {CLOUD, EDGE}
        assert len({one.url for one in started}) == 5
        assert sites[Needs()].network is sites[plain].network is not sites[slow].network
        assert sites[Needs()].cloud_url == sites[plain].cloud_url != sites[slow].cloud_url
        assert sites[slow].cloud_url == started[1].url and sites[slow].edge_url == started[4].url
        assert started[0].settings == ["s=0", "edge.model.sequences=8"]
        assert started[1].settings == ["s=0", "edge.model.sequences=8", "cloud.x=1"]
        through = f"communication.cloud_endpoint={sites[plain].network.url}"
        assert started[3].settings[:3] == ["s=0", "edge.model.sequences=8", "a=1"] and through in started[3].settings


async def test_a_site_is_a_fleet_of_one_cloud(started: list[Any]) -> None:
    async with servers.site(ARGS, [], True, print) as where:
        assert [one.name for one in started] == ["cloud", "edge", "edge-2"]
        assert where.urls[AskedServer.CLOUD] == where.network.url != where.cloud_url == started[0].url
        assert "communication.http_client.optimized=false" in started[2].settings
        assert where.urls[AskedServer.PLAIN_EDGE] == started[2].url


async def test_peers_have_networks_and_the_clouds_cores_of_their_own(
    started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NotedPeer(Noted):
        async def start(self) -> None:
            started.append(self)

        async def wait_ready(self, report: object) -> None:
            pass

        async def stop(self) -> None:
            started.remove(self)

    monkeypatch.setattr(servers, "PeerProcess", NotedPeer)
    peers, pinning = [AskedServer.NGRAM, AskedServer.DRAFT_MODEL], Pinning(clouds=[0], edges=[1])
    async with servers.site(ARGS, ["s=0"], False, print, peers, pinning) as where:
        assert [(one.name, one.cores) for one in started] == [
            ("cloud", [0]), ("edge", [1]), ("ngram", [0]), ("draft-model", [0]),
        ]  # fmt: skip
        assert started[2].script == servers.PEER_PROGRAM and started[2].flags[0] == "ngram"
        assert started[2].settings == started[0].settings == ["s=0", "edge.model.sequences=8"]
        networks = [where.behind(server).network for server in (AskedServer.EDGE, AskedServer.CLOUD, *peers)]
        assert networks[0] is networks[1] and len(set(networks)) == 3
        assert [where.urls[peer] for peer in peers] == [network.url for network in networks[2:]]
        assert [where.behind(peer).url for peer in peers] == [started[2].url, started[3].url]
    assert [one.name for one in started] == ["cloud", "edge"]


async def test_edges_get_a_core_that_no_cloud_has_unless_there_is_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, clouds in (({0, 1}, [0]), ({2, 5, 7}, [2, 5]), ({3}, [3])):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        assert pinned_apart() == Pinning(clouds, [max(cores)])


async def test_a_server_keeps_to_its_cores_with_all_its_threads() -> None:
    (port,) = free_ports(1)
    core = min(os.sched_getaffinity(0))
    flags, log = [json.dumps({"server": {"port": port}})], PROJECT / "logs" / "experiment-pinned.log"
    server = ServerProcess("small", "tests.support.small_server", f"http://127.0.0.1:{port}", flags, log, [core])
    try:
        await server.start()
        await server.wait_ready()
        assert server._process is not None
        threads = psutil.Process(server._process.pid).threads()
        assert {tuple(os.sched_getaffinity(thread.id)) for thread in threads} == {(core,)}
    finally:
        await server.stop()


async def test_a_server_that_ends_early_cancels_the_run_with_one_line() -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    log = PROJECT / "logs" / "experiment-ends.log"
    edge = ServerProcess("edge", "start_edge.py", url, ["--host", "127.0.0.1", "--port", str(port)], log)

    async def work() -> None:
        async with servers._none_ends([edge]):
            assert edge._process is not None
            os.kill(edge._process.pid, signal.SIGKILL)
            await asyncio.sleep(60)

    try:
        await edge.start()
        await edge.wait_ready()
        async with asyncio.timeout(30):
            with pytest.raises(StartError, match=r"the edge server ended in the middle.*experiment-ends\.log"):
                await work()
    finally:
        await edge.stop()


async def test_an_error_inside_is_raised_unchanged(started: list[Any]) -> None:
    for error in (ValueError("mine"), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            async with fleet(ARGS, [], [Needs()], print):
                raise error


async def test_a_port_in_use_is_reported_in_one_line() -> None:
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    flags, log = ["--host", "127.0.0.1", "--port", str(port)], PROJECT / "logs" / "experiment-port.log"
    edge = ServerProcess("edge", "start_edge.py", f"http://127.0.0.1:{port}", flags, log)
    try:
        with pytest.raises(StartError, match=rf"{port} \(Address already in use\)"):
            await edge.start()
    finally:
        taken.close()
        await edge.stop()
