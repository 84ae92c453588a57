"""All processes of a tree are killed, also stopped ones, orphans, a lost server's; it works while it uses the CPU."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from cloud.engine.process_tree import GUARD, ProcessTree
from tests.waiting import PATIENCE, until

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"])
time.sleep(600)
"""


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("orphaned", [False, True])
def test_all_processes_of_a_tree_are_killed(stopped: bool, orphaned: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        tree = ProcessTree([parent.pid])
        (child,) = psutil.Process(parent.pid).children()
        if stopped:
            os.kill(child.pid, signal.SIGSTOP)
            os.kill(parent.pid, signal.SIGSTOP)
        if orphaned:
            parent.kill()
            parent.wait()
        tree.kill()
        parent.wait()
        child.wait(timeout=20)
        tree.kill()  # nothing is left to kill


SPINS = "import time; print('up', flush=True)\nwhile True: sum(range(10**5))"
SLEEPS = "import time; print('up', flush=True); time.sleep(600)"


def used_cpu_within(tree: ProcessTree, seconds: float) -> bool:
    """Whether the tree uses the CPU before this time is over: on a busy machine it may have to wait for it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.1)
        if tree.used_cpu():
            return True
    return False


@pytest.mark.parametrize(
    ("program", "stopped", "works"), [(SPINS, False, True), (SPINS, True, False), (SLEEPS, False, False)]
)
def test_a_tree_works_while_it_uses_the_cpu_and_is_not_stopped(program: str, stopped: bool, works: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        tree = ProcessTree([process.pid])
        tree.used_cpu()
        if stopped:
            process.send_signal(signal.SIGSTOP)
        assert used_cpu_within(tree, PATIENCE if works else 0.5) == works
        process.kill()


def test_a_tree_of_which_one_process_is_stopped_does_not_work_however_much_the_others_spin() -> None:
    children = [subprocess.Popen([sys.executable, "-c", SPINS], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        tree = ProcessTree([child.pid for child in children])
        children[0].send_signal(signal.SIGSTOP)
        tree.used_cpu()
        assert not used_cpu_within(tree, 0.5)
        children[0].send_signal(signal.SIGCONT)
        assert used_cpu_within(tree, PATIENCE)
    finally:
        for child in children:
            child.kill()
            child.communicate()


def test_a_process_that_has_ended_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    ProcessTree([process.pid]).kill()


SERVER = """
import subprocess, sys, time
from cloud.engine import process_tree
process_tree.GUARD, mark, worker = sys.argv[1:]
guard = process_tree.EngineGuard("ENGINE=" + mark)
engine = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {worker!r}]); {worker}"
with process_tree.inherited({"ENGINE": mark}):
    subprocess.Popen([sys.executable, "-c", engine])
print("up", flush=True)
time.sleep(600)
"""
"""A server whose engine has a worker; both would stay for ten minutes."""
UNGUARDED = "read -r mark; read -r end"
A_WHILE = 2.0
"""Seconds in which the guard would have done its part."""


def processes_of(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("ENGINE") == mark:
                found.append(process)
    return found


@asynccontextmanager
async def orphans(
    guard: str, stopped: bool, does: str = "", done: Callable[[], bool] = lambda: True
) -> AsyncIterator[str]:
    """The mark of an engine and its worker, whose server has just been killed."""
    mark = uuid.uuid4().hex
    arguments = [guard, mark, f"{does}import time; time.sleep(600)"]
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, *arguments, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert await server.stdout.readline() == b"up\n"
    try:
        await until(lambda: len(processes_of(mark)) >= 2 and done())
        for process in processes_of(mark) if stopped else []:
            process.suspend()
        server.kill()
        yield mark
    finally:
        for process in processes_of(mark):
            process.kill()
        await server.communicate()  # ends with the last of them: all have its pipe


@pytest.mark.parametrize("stopped", [False, True])
async def test_an_engine_ends_with_a_killed_server_whether_it_runs_or_stands_still(stopped: bool) -> None:
    async with orphans(GUARD, stopped) as mark:
        await until(lambda: not processes_of(mark))


async def test_the_shared_memory_of_an_engine_ends_with_a_killed_server() -> None:
    name = uuid.uuid4().hex

    def held() -> list[Path]:
        return list(Path("/dev/shm").glob(f"{name}*"))

    holds = (
        "import os; from multiprocessing.shared_memory import SharedMemory; "
        f"memory = SharedMemory('{name}' + str(os.getpid()), create=True, size=4096); "
    )
    async with orphans(GUARD, False, holds, lambda: len(held()) == 2) as mark:
        await until(lambda: not processes_of(mark))
        assert not held()


async def test_without_the_shell_that_waits_for_its_end_an_engine_outlives_a_killed_server() -> None:
    async with orphans(UNGUARDED, stopped=False) as mark:
        await asyncio.sleep(A_WHILE)
        assert len(processes_of(mark)) == 2
