"""The programs as people start them: bad input is one line and a non-zero exit, and nothing is left behind."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.server_process import EDGE

ROOT = Path(__file__).parents[2]
MARK = "EDGE_CLOUD_TEST_MARK"


def start(*command: str, mark: str = "") -> subprocess.Popen[str]:
    """Starts a program of this project; its children inherit `mark` in their environment."""
    environment = {**os.environ, MARK: mark}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, text=True, **output)


def run(*command: str, mark: str = "") -> tuple[int, str, str]:
    process = start(*command, mark=mark)
    output, errors = process.communicate(timeout=240)
    return process.returncode, output, errors


def marked_processes(mark: str) -> dict[int, str]:
    """The processes that still run with `mark` in their environment: command lines by process id."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def no_gguf(tmp_path: Path) -> Path:
    path = tmp_path / "text.gguf"
    path.write_text("this is no model")
    return path


@pytest.fixture
def too_large(tmp_path: Path) -> Path:
    """A folder with a model of 4 TB, of which only the header is on the disk."""
    for file in (ROOT / "models" / "demo-cloud").glob("*.json"):
        shutil.copy(file, tmp_path)
    tensor = {"dtype": "BF16", "shape": [1 << 20, 1 << 21], "data_offsets": [0, 1 << 42]}
    header = json.dumps({"weight": tensor}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "main.py --mode client --prompt x --set edge.server.prt=1",
            r"edge\.server\.prt: .*did you mean 'port'",
        ),
        (
            "main.py --mode client --prompt x --set edge.server.port=abc",
            r"edge\.server\.port: expected `int`",
        ),
        (
            "main.py --mode client --prompt x --set communication.cloud_endpoint=localhost:8081",
            r"communication\.cloud_endpoint: 'localhost:8081' is no URL of a server",
        ),
        (
            "start_edge.py --port 0 --set inference.private_patterns=['(']",
            r"inference\.private_patterns\[0\]: not a regular expression",
        ),
        ("main.py --mode client --prompt x --config nowhere.yaml", r"nowhere\.yaml: No such file"),
        ("-m edgecloud ask x --config nowhere.yaml", r"nowhere\.yaml: No such file"),
        ("-m edgecloud batch x --output y --edge 127.0.0.1:1", "communication.edge_endpoint: .* is no URL of a server"),
        ("main.py --mode client --prompt=", "the prompt is empty"),
        ("main.py --mode client", "needs --prompt"),
        ("main.py --mode server --prompt x", "--prompt: this mode takes none"),
        ("main.py --cloud-server --prompt x", "--prompt: this mode takes none"),
        (
            "main.py --mode client --prompt x --set communication.edge_endpoint=http://127.0.0.1:1",
            r"cannot reach http://127\.0\.0\.1:1 \(Connection refused\): is that server running\?",
        ),
        ("start_edge.py --port 0 --model nowhere.gguf", r"nowhere\.gguf: No such file"),
        ("start_edge.py --port 0 --model {no_gguf}", "not a GGUF file"),
        (
            "start_edge.py --host 127.0.0.1 --port {used_port}",
            "cannot listen on .*Address already in use",
        ),
        ("start_cloud.py --port 0 --model ./nowhere", "no such directory"),
        ("start_cloud.py --port 0 --model {too_large}", r"needs (4096|8192)\.0 GiB of memory .*; .* are free"),
        ("start_cloud.py --port 0 --set cloud.engine_args={{max_model_length: 3}}", "did you mean 'max_model_len'"),
        (
            "start_cloud.py --host 127.0.0.1 --port {used_port}",
            "cannot listen on .*Address already in use",
        ),
        ("main.py --mode demo --set edge.model.path=nowhere.gguf", r"edge server did not start: .*nowhere\.gguf"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing_running(
    command: str, message: str, used_port: int, no_gguf: Path, too_large: Path
) -> None:
    mark = uuid.uuid4().hex
    words = (
        command.format(used_port=used_port, no_gguf=no_gguf, too_large=too_large).replace(": ", ":\u00a0").split(" ")
    )
    code, _, errors = run(*(word.replace("\u00a0", " ") for word in words), mark=mark)
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code != 0
    assert len(said) == 1
    assert re.search(message, said[0])
    assert "Traceback" not in errors
    assert not marked_processes(mark)


@pytest.mark.parametrize("program", ["start_edge.py", "start_cloud.py"])
def test_a_hub_that_is_not_reached_is_one_line_without_retries_and_nothing_is_written(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    code, _, errors = run(program, "--port", "0", "--model", "Owner/Some-Model")
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 1
    assert len(said) == 1
    assert said[0].startswith("error: model Owner/Some-Model: no local file, and the hub cannot deliver it: http://127")
    assert "Retry" not in errors and "Traceback" not in errors
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]


@pytest.mark.parametrize("program", ["start_edge.py", "start_cloud.py"])
def test_a_model_that_is_not_under_the_root_is_one_line_with_all_places(program: str, tmp_path: Path) -> None:
    preset = "config/presets/qwen2.5-coder.yaml"  # whose `local` names do not count for another --model
    flags = ["--config", preset, "--model", "Owner/Some-Model", "--set", f"models.root={tmp_path}"]
    code, _, errors = run(program, "--port", "0", *flags)
    tried = f"{tmp_path}/Owner/Some-Model, {tmp_path}/Some-Model"
    assert code == 1
    assert f"model.path: Owner/Some-Model is not in models.root; tried {tried}" in errors.splitlines()[-1]


def test_the_demo_answers_and_leaves_no_process_behind() -> None:
    mark = uuid.uuid4().hex
    code, output, errors = run("main.py", "--mode", "demo", "--prompt", "What is AI?", "--temperature", "0", mark=mark)
    assert code == 0, errors
    assert "Artificial intelligence is" in output
    for row in ("tokens edge", "acceptance rate", "cloud latency", "bytes up"):
        assert row in output
    assert not marked_processes(mark)


def test_the_server_mode_restarts_a_server_that_dies_and_stops_all_on_ctrl_c() -> None:
    mark = uuid.uuid4().hex
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], two.getsockname()[1]
    flags = [f"edge.server.port={ports[0]}", f"cloud.server.port={ports[1]}"]
    flags.append(f"communication.cloud_endpoint=http://localhost:{ports[1]}")
    process = start("main.py", "--mode", "server", *[word for f in flags for word in ("--set", f)], mark=mark)
    try:
        client = ["main.py", "--mode", "client", "--prompt", "What is AI?", "--temperature", "0"]
        client += ["--set", f"communication.edge_endpoint=http://localhost:{ports[0]}"]
        wait_for(lambda: run(*client)[0] == 0 and listening(ports[1]))
        first = edge_pid(mark)
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: edge_pid(mark) not in (0, first) and run(*client)[0] == 0)
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "the edge server ended with code -9" in errors
    assert "Traceback" not in errors
    assert not marked_processes(mark)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.5)


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def edge_pid(mark: str) -> int:
    """The process id of the edge server that runs with `mark`, 0 if there is none."""
    return next((pid for pid, command in marked_processes(mark).items() if EDGE in command), 0)
