"""Programs that loop, fork, write, allocate, call out or end early: each fails, and nothing is left of them."""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.questions import sandbox
from experiments.questions.sandbox import CHILD, SandboxLimits
from tests.waiting import until

SHORT = SandboxLimits(cpu_seconds=1, wall_seconds=3.0)
BARE = SandboxLimits(cpu_seconds=1, wall_seconds=3.0, namespaces=False)
"""As on a machine whose kernel allows no namespaces."""
BOTH = pytest.mark.parametrize("limits", [SHORT, BARE], ids=["namespaces", "bare"])
DAEMON = """
import ctypes, os, time
libc = ctypes.CDLL(None)
here, there = os.pipe()
if libc.fork() == 0:
    libc.setsid()
    if libc.fork() == 0:
        libc.prctl(15, b"left-behind")
        os.write(there, b"!")
        while True:
            time.sleep(0.01)
    libc._exit(0)
os.read(here, 1)
"""
"""A process that no longer belongs to the program, made behind Python's back."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where programs have their folders; it must be empty again, and nobody's working folder may lie in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []
    assert living(tmp_path) == []


def living(folder: Path) -> list[int]:
    """The processes whose working folder is below `folder`, or was: the link of a removed one still names it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd").startswith(str(folder)):
                found.append(int(process.name))
        except OSError:
            continue  # ended, or another user's
    return found


@BOTH
def test_a_program_that_runs_to_its_end_passes(limits: SandboxLimits) -> None:
    program = "import math, random, hashlib, itertools\nassert math.gcd(4, 6) == 2\nhashlib.md5(b'a').hexdigest()"
    assert sandbox.run(program, limits).reason == "passed"


@BOTH
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("while True: pass", "out of time"),
        ("while True:\n  try:\n    while True: pass\n  except BaseException: pass", ""),
        ("sum(range(10**12))", ""),
        ("import time; time.sleep(60)", "out of time"),
        ("import os; os.fork()", "may not call os.fork"),
        ("import subprocess; subprocess.run(['true'])", "may not call subprocess.Popen"),
        ("import os; os.system('true')", "may not call os.system"),
        ("import os; os.kill(os.getppid(), 9)", "may not call os.kill"),
        ("x = bytearray(2 << 30)", "MemoryError"),
        ("x = []\nwhile True: x.append(bytes(1 << 20))", "MemoryError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("import socket; socket.socket()", "may not call socket"),
        ("import socket; socket.create_connection(('127.0.0.1', 1))", "may not call socket"),
        ("input()", "EOFError"),
        ("exit(0)", "NameError"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("raise SystemExit", "SystemExit"),
        ("class E(Exception):\n  def __str__(self): raise ValueError\nraise E", "E"),
        ("import os; os._exit(0)", "ended before its tests"),
        ("import os; os.abort()", "ended before its tests"),
        ("import os\nfor n in range(3, 64):\n  try: os.write(n, b'passed')\n  except OSError: pass", "ended before"),
        ("import os\nos.closerange(3, 64)", "ended before its tests"),
    ],
)
def test_a_program_that_does_not_reach_its_end_fails(program: str, reason: str, limits: SandboxLimits) -> None:
    found = sandbox.run(program, limits)
    assert not found.passed
    assert reason in found.reason


def test_a_lot_of_output_is_thrown_away() -> None:
    program = (
        "import os, sys\nfor n in range(2000): print('x' * 10000)\nsys.stderr.write('y' * 10**6); sys.stdout.flush()"
    )
    assert sandbox.run(program, SHORT).reason == "passed"


@BOTH
@pytest.mark.parametrize("end", ["", "import os; os._exit(0)", "while True: pass"])
def test_a_daemon_ends_with_its_program(end: str, limits: SandboxLimits, folder: Path) -> None:
    sandbox.run(DAEMON + end, limits)
    assert living(folder) == []


async def test_without_the_reaper_a_daemon_would_stay(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("child") / "child.py"
    copy.write_text(CHILD.read_text().replace("    _end_all()\n", ""))
    command, job = [sys.executable, "-I", str(copy)], sandbox.job(DAEMON, BARE)
    await asyncio.to_thread(subprocess.run, command, input=job, cwd=folder, capture_output=True, check=True)
    await until(lambda: len(living(folder)) == 1)  # who forked it may end later
    os.kill(living(folder)[0], 9)
    await until(lambda: not living(folder))


@pytest.mark.parametrize(
    "call",
    [
        "open({file!r}, 'w')",
        "open({file!r}, 'r+')",
        "open({file!r}, 'a').write('x')",
        "import os; os.open({file!r}, os.O_RDWR)",
        "import os; os.remove({file!r})",
        "import os; os.rename({file!r}, {file!r} + '.old')",
        "import os; os.truncate({file!r}, 0)",
        "import os; os.chmod({file!r}, 0)",
        "import os; os.mkdir({file!r} + '.d')",
        "import os; os.symlink('a', {file!r} + '.link')",
        "import os; os.mkfifo({file!r} + '.fifo')",
        "import os; os.mknod({file!r} + '.node')",
        "import pathlib; pathlib.Path({file!r}).unlink()",
        "import shutil; shutil.rmtree(os.path.dirname({file!r}))",
        "import tempfile; tempfile.mkstemp()",
        "import sqlite3; sqlite3.connect({file!r})",
        "open('new', 'w')",
    ],
)
def test_files_are_only_read(call: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("user") / "precious"
    file.write_text("kept")
    found = sandbox.run("import os\n" + call.format(file=str(file)), SHORT)
    assert "PermissionError" in found.reason or "No usable temporary directory" in found.reason
    assert file.read_text() == "kept"
    assert [one.name for one in file.parent.iterdir()] == ["precious"]


def test_a_file_opened_behind_the_hook_stays_empty(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("user") / "made"
    program = f"import ctypes\nfd = ctypes.CDLL(None).open({str(file).encode()!r}, 0o101, 0o600)\n"
    program += "import os\ntry: os.write(fd, b'x' * 4096)\nexcept OSError: pass"
    sandbox.run(program, SHORT)
    assert file.read_bytes() == b""


def test_where_namespaces_work_there_is_no_network_even_behind_the_hook() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        address = f"bytes([2, 0, {port >> 8}, {port & 255}, 127, 0, 0, 1] + [0] * 8)"
        program = "import ctypes\nlibc = ctypes.CDLL(None)\nfd = libc.socket(2, 1, 0)\n"
        program += f"assert libc.connect(fd, {address}, 16) == 0, 'no network'"
        if not sandbox.run(program, BARE).passed:
            pytest.fail("the program reaches the server without namespaces")
        if namespaces_work():
            assert sandbox.run(program, SHORT).reason == "AssertionError: no network"


def namespaces_work() -> bool:
    program = "import os\nassert os.getpid() == 1"
    return sandbox.run(program, SHORT).passed


def test_nothing_of_the_environment_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECLOUD_SECRET", "mine")
    program = "import os, sys\nassert 'EDGECLOUD_SECRET' not in os.environ, 'seen'\n"
    program += "assert os.listdir('.') == [] and not any('site-packages' in path for path in sys.path)"
    assert sandbox.run(program, SHORT).reason == "passed"


def test_a_program_cannot_forge_the_verdict_by_what_it_defines() -> None:
    program = (
        "import os, builtins\nos.write = os._exit = lambda *_: 0\nbuiltins.AssertionError = KeyError\nassert False"
    )
    assert not sandbox.run(program, SHORT).passed
