"""What a supervisor protects from, with the protection off: the negative controls of the tests of killed servers."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cli import server_process
from cli.demo import free_ports
from cli.server_process import ServerProcess
from cli.supervisor import Supervisor
from tests.cli.test_supervisor import SERVER, SUPERVISOR, runs
from tests.waiting import until

A_WHILE = 3.0
"""Seconds in which each of the protections would have done its part."""


@asynccontextmanager
async def running_server(folder: Path) -> AsyncIterator[tuple[ServerProcess, int]]:
    """A server under a supervisor, and its process id."""
    (folder / "server.py").write_text(SERVER)
    (port,) = free_ports(1)
    flags = [str(port), str(folder / "pids")]
    server = ServerProcess("edge", str(folder / "server.py"), f"http://127.0.0.1:{port}", flags, folder / "edge.log")
    async with Supervisor([server], lambda _: None).running():
        yield server, int((folder / "pids").read_text().split()[0])


async def test_without_the_shell_that_waits_for_its_end_servers_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    (port,) = free_ports(1)
    unprotected = f"import cli.server_process\ncli.server_process.WATCH = 'read group; read end'\n{SUPERVISOR}"
    arguments = [str(tmp_path / "server.py"), str(port), str(tmp_path / "pids")]
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # nobody removes the server's temporary files either
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", unprotected, *arguments, stdout=PIPE, env=environment
    )
    assert program.stdout is not None
    assert await program.stdout.readline() == b"ready\n"
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    try:
        program.kill()
        await asyncio.sleep(A_WHILE)
        assert all(map(runs, pids))
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await program.communicate()  # which ends with the last of them: all have its pipe


async def test_without_its_restarts_a_killed_server_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Supervisor, "_restart", never)
    async with running_server(tmp_path) as (server, pid):
        os.kill(pid, signal.SIGKILL)
        await server.exited()
        await asyncio.sleep(A_WHILE)
        assert not server.ready.is_set()
        assert (tmp_path / "pids").read_text().startswith(str(pid))


async def test_without_the_looks_at_its_health_a_frozen_server_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "HEALTH_SECONDS", 0.2)
    monkeypatch.setattr(server_process, "HUNG_CHECKS", 10**6)
    async with running_server(tmp_path) as (server, pid):
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(A_WHILE)
        assert server.ready.is_set() and runs(pid)
        os.kill(pid, signal.SIGCONT)
        await until(lambda: runs(pid))
