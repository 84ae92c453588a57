"""test_framework.py and run_demo.sh as people start them: what they say, and that nothing is left behind."""

import os
import signal
import socket
import subprocess
import uuid
from pathlib import Path

import pytest

from cli.demo import free_ports
from tests.end_to_end.test_programs import MARK, marked_processes, run

ROOT = Path(__file__).parents[2]
set_up = pytest.mark.skipif(not (ROOT / ".venv" / ".ready").exists(), reason="run_demo.sh would set up first")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which no cell of a table is broken into lines."""
    monkeypatch.setenv("COLUMNS", "200")


def rows(output: str) -> list[list[str]]:
    """The first line of each row of the table."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    return [row for row in cells if row[0]]


def test_a_whole_installation_passes_every_check_of_every_part() -> None:
    mark = uuid.uuid4().hex
    code, output, errors = run("test_framework.py", mark=mark)
    assert (code, errors) == (0, "")
    assert {row[0] for row in rows(output)} == {"✓"}
    assert {row[1] for row in rows(output)} >= {"F1", "F2", "F3", "F4"}
    assert f"All {len(rows(output))} checks passed" in output
    assert not marked_processes(mark)


@pytest.mark.parametrize(
    ("broken", "what", "seen"),
    [
        ("edge.model.path=nowhere.gguf", "both servers start", "nowhere.gguf"),
        ("cloud.model.path=./nowhere", "both servers start", "no such directory"),
    ],
)
def test_a_part_that_is_broken_fails_and_says_what_to_do(broken: str, what: str, seen: str) -> None:
    mark = uuid.uuid4().hex
    code, output, errors = run("test_framework.py", "--set", broken, mark=mark)
    failed = [row for row in rows(output) if row[0] == "✗"]
    assert code == 1
    assert [row[2] for row in failed] == [what]
    assert seen in output
    assert "→" in output
    assert errors == f"error: 1 of {len(rows(output))} checks failed\n"
    assert not marked_processes(mark)


@pytest.mark.long
def test_a_cache_that_is_off_is_noticed() -> None:
    code, output, _ = run("test_framework.py", "--set", "cloud.kv_cache.enabled=false")
    assert code == 1
    assert [row[2] for row in rows(output) if row[0] == "✗"] == ["the cloud computes no prompt twice"]


def demo(mark: str) -> subprocess.Popen[str]:
    """run_demo.sh on free ports, started from another folder, in a process group of its own as on a terminal."""
    edge, cloud = free_ports(2)
    environment = {**os.environ, MARK: mark, "EDGE_PORT": str(edge), "CLOUD_PORT": str(cloud)}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    script = str(ROOT / "run_demo.sh")
    return subprocess.Popen([script], cwd="/", env=environment, text=True, start_new_session=True, **output)


@set_up
def test_the_demo_script_shows_everything_and_stops_everything() -> None:
    mark = uuid.uuid4().hex
    output, errors = (process := demo(mark)).communicate(timeout=240)
    assert (process.returncode, errors) == (0, "")
    titles = [line for line in output.splitlines() if line.startswith("== ")]
    assert len(titles) >= 5
    assert output.count("How this answer came about") == 2
    assert not marked_processes(mark)


@set_up
def test_ctrl_c_stops_the_demo_script_and_all_it_started() -> None:
    mark = uuid.uuid4().hex
    process = demo(mark)
    assert process.stdout
    assert any("starting" in line for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not marked_processes(mark)


@set_up
def test_the_demo_script_leaves_other_programs_ports_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        environment = {**os.environ, "EDGE_PORT": str(port)}
        said = subprocess.run([ROOT / "run_demo.sh"], env=environment, text=True, capture_output=True, timeout=60)
    assert said.returncode == 1
    assert said.stderr.startswith(f"error: port {port} is in use")
