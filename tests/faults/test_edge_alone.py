"""An edge whose disk is full or slow, and whose clock jumps, answers as it always does."""

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fake_cloud import serving
from cli.demo import free_ports
from cli.server_process import ServerProcess
from cli.supervisor import Supervisor
from common.http.client import HTTPClient
from edge.kv.snapshot_folder import SnapshotFolder
from tests.support.edge_in_process import edge_of

QUESTIONS = [
    f"<|user|>{about} {'and so on ' * 12}<|assistant|>" for about in ("What is AI?", "Explain gravity", "Hello")
]
"""Long enough that their KV is worth a snapshot."""
LOSSLESS = {"use_confidence_check": False}


async def answers(edge: HTTPClient, **fields: Any) -> list[str]:
    """To all questions, twice; the second time from what was kept."""
    texts = []
    for question in QUESTIONS * 2:
        asked = {"prompt": question, "max_tokens": 12, "temperature": 0, "mode": "edge_only", **fields}
        reply: dict[str, Any] = await edge.post("/v1/completions", asked, dict)
        texts.append(reply["choices"][0]["text"])
    return texts


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own, on which nothing more can be written."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("this user cannot mount a file system")
    try:
        with pytest.raises(OSError, match="No space"):
            (tmp_path / "filler").write_bytes(bytes(2**20))
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


async def test_an_edge_with_full_disks_answers_as_always(
    full_disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The one for snapshots, and the one for its log."""
    kept = full_disk / "kv"
    (full_disk / "filler").write_bytes(bytes(2**14))
    kept.mkdir(mode=0o700)
    usual = await answers_of_server(tmp_path_factory.mktemp("log") / "edge.log")
    full = await answers_of_server(Path("/dev/full"), f"edge.kv_cache.directory={kept}")
    assert full == usual


async def answers_of_server(log: Path, *settings: str) -> list[str]:
    (port,) = free_ports(1)
    own = ["edge.kv_cache.ram_bytes=0", "edge.model.sequences=1", "logging.level=DEBUG"]
    own += ["communication.cloud_endpoint=http://127.0.0.1:1", *settings]
    flags = ["--host", "127.0.0.1", "--port", str(port), *(word for one in own for word in ("--set", one))]
    url = f"http://127.0.0.1:{port}"
    server = ServerProcess("edge", "start_edge.py", url, flags, log)
    async with Supervisor([server], lambda _: None).running(), HTTPClient(url) as edge:
        return await answers(edge)


async def test_an_edge_with_a_slow_disk_does_not_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes nothing until all answers are there."""
    begun, go_on, write = threading.Event(), threading.Event(), SnapshotFolder.write

    def slow(folder: SnapshotFolder, name: str, data: bytes) -> None:
        begun.set()
        go_on.wait()
        write(folder, name, data)

    settings = [f"edge.kv_cache.directory={tmp_path}", "edge.kv_cache.ram_bytes=0", "edge.model.sequences=1"]
    async with edge_of("http://127.0.0.1:1") as edge:
        truth = await answers(edge)
    monkeypatch.setattr(SnapshotFolder, "write", slow)
    async with edge_of("http://127.0.0.1:1", *settings) as edge:
        assert await answers(edge) == truth
        go_on.set()
    assert begun.is_set()


async def test_a_clock_that_jumps_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines, breakers, caches of rounds and of sessions are by the monotonic clock."""
    jumps = iter([0.0, 1e9, -1e9, 3600.0] * 10_000)
    clock = time.time
    async with serving() as cloud, edge_of(cloud.url) as edge:
        await cloud.share_vocabulary(edge)
        truth = [await answers(edge), await answers(edge, mode="collaborative", **LOSSLESS)]
        monkeypatch.setattr(time, "time", lambda: clock() + next(jumps))
        assert [await answers(edge), await answers(edge, mode="collaborative", **LOSSLESS)] == truth
