"""The supervisor of the servers: in which order they stop, and that they end with it, however it ends."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli import supervisor
from cli.demo import free_ports
from cli.supervisor import ServerProcess, Supervisor

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
from cli.supervisor import ServerProcess, Supervisor

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


async def test_a_supervisor_that_has_stopped_its_servers_leaves_no_process(tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    (tmp_path / "server.py").write_text(SERVER)
    (port,) = free_ports(1)
    url, flags = f"http://127.0.0.1:{port}", [str(port), str(tmp_path / "pids")]
    server = ServerProcess("edge", str(tmp_path / "server.py"), url, flags, tmp_path / "edge.log")
    async with Supervisor([server], lambda _: None).running():
        assert len({child.pid for child in psutil.Process().children(recursive=True)} - before) == 3
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert not any(map(runs, left))


async def test_a_server_that_answers_nothing_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "HEALTH_SECONDS", 0.2)
    monkeypatch.setattr(supervisor, "HUNG_CHECKS", 3)
    (tmp_path / "server.py").write_text(SERVER)
    (port,) = free_ports(1)
    url, pids = f"http://127.0.0.1:{port}", tmp_path / "pids"
    server = ServerProcess("edge", str(tmp_path / "server.py"), url, [str(port), str(pids)], tmp_path / "edge.log")
    async with Supervisor([server], lambda _: None).running():
        first = pids.read_text()
        await asyncio.sleep(2)
        assert pids.read_text() == first, "it answers"
        os.kill(int(first.split()[0]), signal.SIGSTOP)
        async with asyncio.timeout(30):
            while pids.read_text() in (first, "") or not server.ready.is_set():
                await asyncio.sleep(0.05)
        assert not any(runs(int(pid)) for pid in first.split())
