"""The supervisor of the servers: in which order they stop, and that they end with it, however it ends."""

import asyncio
import json
import logging
import os
import re
import signal
import sys
import tempfile
import uuid
from asyncio.subprocess import PIPE
from glob import glob
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli import server_process
from cli.demo import free_ports
from cli.server_process import ServerProcess
from cli.supervisor import Supervisor
from common import config
from common.errors import StartError
from common.http.client import HTTPClient
from edgecloud import serve
from tests.waiting import until

READY = """
import os, signal, subprocess, sys, time, urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
"""
"""The beginning of a server program that is ready at once."""
EDGE = (
    READY
    + """
port, cloud, result = int(sys.argv[1]), sys.argv[2], sys.argv[3]

def drain(*_):
    time.sleep(0.5)
    with open(result, "w") as file:
        file.write(str(urllib.request.urlopen(cloud + "/wait/0.2").status))
    os._exit(0)

signal.signal(signal.SIGTERM, drain)
HTTPServer(("127.0.0.1", port), Ready).serve_forever()
"""
)
"""A program that, told to stop, still has an answer to finish for which it asks the cloud."""


def small_server(name: str, port: int, folder: Path, **server: Any) -> ServerProcess:
    flags = [json.dumps({"server": {"port": port, **server}})]
    return ServerProcess(name, "tests.support.small_server", f"http://127.0.0.1:{port}", flags, folder / f"{name}.log")


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        (["cloud.server.port=9101"], ["communication.cloud_endpoint=http://localhost:9101"]),
        (["cloud.server.port=9101", "communication.cloud_endpoint=http://far:1"], []),
    ],
)
def test_the_edge_asks_the_cloud_that_is_started_with_it_unless_another_is_named(
    flags: list[str], asked: list[str]
) -> None:
    cloud, edge = serve.both(config.load(flags=flags), [])
    assert cloud.url == "http://localhost:9101"
    assert [part for part in edge._command if part.startswith("communication.")] == asked


async def test_a_server_for_another_processor_says_so_when_it_ends(tmp_path: Path) -> None:
    (tmp_path / "edge.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)")
    (port,) = free_ports(1)
    server = ServerProcess("edge", str(tmp_path / "edge.py"), f"http://127.0.0.1:{port}", [], tmp_path / "log")
    await server.start()
    with pytest.raises(StartError, match=r"did not start: it ended with code -4 \(illegal instruction: .*DEVICES.md"):
        await server.wait_ready()
    await server.stop()


async def test_an_edge_can_ask_its_cloud_until_it_has_drained(tmp_path: Path) -> None:
    (tmp_path / "edge.py").write_text(EDGE)
    cloud_port, edge_port = free_ports(2)
    cloud, result = small_server("cloud", cloud_port, tmp_path), tmp_path / "result"
    flags = [str(edge_port), cloud.url, str(result)]
    edge = ServerProcess(
        "edge", str(tmp_path / "edge.py"), f"http://127.0.0.1:{edge_port}", flags, tmp_path / "edge.log"
    )
    async with Supervisor([cloud, edge], lambda _: None).running():
        pass
    assert result.read_text() == "200"


SUPERVISOR = """
import asyncio, sys
from cli.server_process import ServerProcess
from cli.supervisor import Supervisor

async def main():
    program, port, pids = sys.argv[1:]
    server = ServerProcess("edge", program, f"http://127.0.0.1:{port}", [port, pids])
    async with Supervisor([server], lambda _: None).running():
        print("ready", flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""
SERVER = (
    READY
    + """
child = subprocess.Popen(["sleep", "3600"])
with open(sys.argv[2], "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""
)
"""A server with a process of its own, as an engine is."""


HOLDER = (
    READY
    + """
import tempfile
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(sys.argv[2], create=True, size=4096)
open(os.path.join(tempfile.mkdtemp(), sys.argv[2]), "w").close()
HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""
)
"""A server with shared memory and a temporary file, as vLLM's, that does nothing about them at its end."""


def left(name: str) -> list[str]:
    """What there is of the holder with this name: its shared memory and its file. Folders of other tests may vanish."""
    return [*glob(f"/dev/shm/{name}"), *glob(f"{tempfile.gettempdir()}/edge-*/*/{name}")]


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_servers_end_with_their_supervisor_also_when_it_is_killed_and_they_stand_still(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    (port,) = free_ports(1)
    arguments = [str(tmp_path / "server.py"), str(port), str(tmp_path / "pids")]
    program = await asyncio.create_subprocess_exec(sys.executable, "-c", SUPERVISOR, *arguments, stdout=PIPE)
    assert program.stdout is not None
    assert await program.stdout.readline() == b"ready\n"
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        assert all(map(runs, pids))
        program.kill()
        async with asyncio.timeout(30):
            while any(map(runs, pids)):
                await asyncio.sleep(0.05)
    finally:
        for pid in filter(runs, pids):
            os.kill(pid, signal.SIGKILL)
        await program.wait()


@pytest.mark.parametrize("killed", [False, True])
async def test_shared_memory_and_temporary_files_of_a_server_end_with_it(killed: bool, tmp_path: Path) -> None:
    (tmp_path / "holder.py").write_text(HOLDER)
    (port,), name = free_ports(1), uuid.uuid4().hex
    server = ServerProcess("edge", str(tmp_path / "holder.py"), f"http://127.0.0.1:{port}", [str(port), name])
    await server.start()
    await server.wait_ready()
    assert len(left(name)) == 2
    if killed:
        server._signal(signal.SIGKILL, whole_group=False)
        await server.exited()
    await server.stop()
    assert not left(name)


async def test_the_id_of_a_server_that_has_ended_which_another_process_may_have_gets_no_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "server.py").write_text("")
    (port,) = free_ports(1)
    server = ServerProcess("edge", str(tmp_path / "server.py"), f"http://127.0.0.1:{port}", [])
    await server.start()
    await server.exited()
    sent = list[int]()
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(pid))
    await server.stop()
    assert not sent


async def test_shared_memory_and_temporary_files_of_a_server_end_with_a_killed_supervisor(tmp_path: Path) -> None:
    (tmp_path / "holder.py").write_text(HOLDER)
    (port,), name = free_ports(1), uuid.uuid4().hex
    arguments = [str(tmp_path / "holder.py"), str(port), name]
    program = await asyncio.create_subprocess_exec(sys.executable, "-c", SUPERVISOR, *arguments, stdout=PIPE)
    assert program.stdout is not None
    assert await program.stdout.readline() == b"ready\n"
    assert len(left(name)) == 2
    program.kill()
    await until(lambda: not left(name))
    await program.communicate()  # ends with the shell that has waited for its end: that has its pipe


async def test_servers_share_processors_as_equals_and_have_groups_of_their_own(tmp_path: Path) -> None:
    """Linux shares them out among sessions first (autogroups), which starved one of two servers on the same cores."""
    (tmp_path / "server.py").write_text(SERVER)
    (port,) = free_ports(1)
    flags = [str(port), str(tmp_path / "pids")]
    server = ServerProcess(
        "edge", str(tmp_path / "server.py"), f"http://127.0.0.1:{port}", flags, tmp_path / "edge.log"
    )
    async with Supervisor([server], lambda _: None).running():
        pid = int((tmp_path / "pids").read_text().split()[0])
        assert os.getsid(pid) == os.getsid(0)
        assert os.getpgid(pid) != os.getpgid(0), "Ctrl-C in a terminal reaches the supervisor alone, which stops it"


async def test_a_supervisor_that_has_stopped_its_servers_leaves_no_process(tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    (tmp_path / "server.py").write_text(SERVER)
    (port,) = free_ports(1)
    url, flags = f"http://127.0.0.1:{port}", [str(port), str(tmp_path / "pids")]
    server = ServerProcess("edge", str(tmp_path / "server.py"), url, flags, tmp_path / "edge.log")
    async with Supervisor([server], lambda _: None).running():
        assert len({child.pid for child in psutil.Process().children(recursive=True)} - before) == 3
    still = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert not any(map(runs, still))


async def test_a_server_that_answers_nothing_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, answers = list[bool](), server_process._answers

    async def noted(client: HTTPClient) -> bool:
        looks.append(await answers(client))
        return looks[-1]

    monkeypatch.setattr(server_process, "_answers", noted)
    monkeypatch.setattr(server_process, "HEALTH_SECONDS", 0.5)
    monkeypatch.setattr(server_process, "HUNG_CHECKS", 4)
    (tmp_path / "server.py").write_text(SERVER)
    (port,) = free_ports(1)
    url, pids = f"http://127.0.0.1:{port}", tmp_path / "pids"
    server = ServerProcess("edge", str(tmp_path / "server.py"), url, [str(port), str(pids)], tmp_path / "edge.log")
    async with Supervisor([server], lambda _: None).running():
        first = pids.read_text()
        await until(lambda: sum(looks) > 4)
        assert pids.read_text() == first, "it answers"
        os.kill(int(first.split()[0]), signal.SIGSTOP)
        async with asyncio.timeout(30):
            while pids.read_text() in (first, "") or not server.ready.is_set():
                await asyncio.sleep(0.05)
        assert not any(runs(int(pid)) for pid in first.split())


async def test_another_programs_server_on_the_port_is_an_error_and_not_taken_for_ones_own(tmp_path: Path) -> None:
    """Also where one's own would notice late that the port is used, as one that loads an engine first does."""
    (port,) = free_ports(1)
    (tmp_path / "slow.py").write_text("import time; time.sleep(3600)")
    mine = ServerProcess("edge", str(tmp_path / "slow.py"), f"http://127.0.0.1:{port}", [])
    async with Supervisor([small_server("other", port, tmp_path)], lambda _: None).running():
        with pytest.raises(StartError, match=rf"^the edge server cannot listen on 127\.0\.0\.1:{port} \(Address alr"):
            async with Supervisor([mine], lambda _: None).running():
                pytest.fail("it said that it runs")


DEAF = """
import signal, sys, time

signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").close()
time.sleep(3600)
"""


async def test_a_server_that_still_loads_and_hears_no_signal_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_process, "LOADING_STOP_SECONDS", 0.2)
    monkeypatch.setattr(server_process, "STOP_SECONDS", 3600.0)
    caplog.set_level(logging.INFO, "cli.server_process")
    (tmp_path / "deaf.py").write_text(DEAF)
    (port,) = free_ports(1)
    begun = tmp_path / "begun"
    loading = ServerProcess("cloud", str(tmp_path / "deaf.py"), f"http://127.0.0.1:{port}", [str(begun)])

    async def run() -> None:
        async with Supervisor([loading], lambda _: None).running():
            pytest.fail("it never gets ready")

    task = asyncio.create_task(run())
    async with asyncio.timeout(60):
        while not begun.exists():
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert caplog.messages == ["stopping the cloud server"]


async def test_a_server_that_is_ready_is_watched_while_another_still_loads(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    (tmp_path / "slow.py").write_text("import time; time.sleep(3600)")
    edge_port, cloud_port = free_ports(2)
    url, pids = f"http://127.0.0.1:{edge_port}", tmp_path / "pids"
    edge = ServerProcess("edge", str(tmp_path / "server.py"), url, [str(edge_port), str(pids)], tmp_path / "edge.log")
    cloud = ServerProcess("cloud", str(tmp_path / "slow.py"), f"http://127.0.0.1:{cloud_port}", [])
    said: list[str] = []

    async def run() -> None:
        async with Supervisor([cloud, edge], said.append).running():
            pytest.fail("the cloud never gets ready")

    task = asyncio.create_task(run())
    try:
        async with asyncio.timeout(60):
            while not edge.ready.is_set():
                await asyncio.sleep(0.02)
            first = pids.read_text()
            os.kill(int(first.split()[0]), signal.SIGKILL)
            while pids.read_text() in (first, "") or not edge.ready.is_set():
                await asyncio.sleep(0.02)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert f"the edge server is ready at {url}; still starting: cloud" in said


async def test_a_server_that_loads_is_not_said_to_be_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "REPORT_SECONDS", 0.2)
    (tmp_path / "slow.py").write_text("import time; time.sleep(3600)")
    (port,) = free_ports(1)
    cloud = ServerProcess("cloud", str(tmp_path / "slow.py"), f"http://127.0.0.1:{port}", [])
    said: list[str] = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3), Supervisor([cloud], said.append).running():
            pass
    progress = said[1:]
    assert progress and all(
        re.fullmatch(r"the cloud server is not ready after \d+ s: it loads", one) for one in progress
    )


async def test_two_pairs_at_once_keep_logs_of_their_own(tmp_path: Path) -> None:
    """Else the reason why one does not start is read from what the other has written."""
    first, second = (small_server("cloud", port, tmp_path) for port in free_ports(2))
    async with Supervisor([first]).running():
        async with Supervisor([second]).running():
            assert {Path(str(one.log)).name for one in (first, second)} == {"cloud.log", "cloud-2.log"}
        third = small_server("cloud", free_ports(1)[0], tmp_path)
        async with Supervisor([third]).running():
            assert Path(str(third.log)).name == "cloud-2.log", "whose server has ended"
