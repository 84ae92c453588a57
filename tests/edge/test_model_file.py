"""Model files: which GGUF file a path, folder or hub id means, and that no file aborts the process that loads it."""

import asyncio
import concurrent.futures
import os
import random
import signal
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from common import config as configs
from common.config_edge import EdgeModelConfig
from common.errors import StartError
from edge.llama import model_file
from edge.llama.gguf_header import read_header
from edge.llama.model_file import choose, resolve

DEMO = Path("models/demo-edge.gguf")
DATA = DEMO.read_bytes()
PARTS = ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"]


async def prepare(path: str, pattern: str = "") -> Path:
    return await model_file.prepare(EdgeModelConfig(path=path, pattern=pattern))


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    def make(*names: str) -> Path:
        for name in names:
            (tmp_path / name).write_bytes(b"GGUF")
        return tmp_path

    return make


# What a path means


async def test_every_edge_finds_its_models_under_the_root(tmp_path: Path) -> None:
    """Also those of experiments: one that took the hub id for a file's path did not start."""
    (tmp_path / "small.gguf").write_bytes(DATA)
    given = ("models.root=" + str(tmp_path), "edge.model.path=owner/small:q8_0", "edge.model.local=small.gguf")
    config = await model_file.prepared(configs.load(flags=given, environment={}))
    assert config.edge.model.path == str(tmp_path / "small.gguf")
    none = configs.load(flags=("edge.model.path=''",), environment={})
    assert await model_file.prepared(none) == none


def test_a_path_to_a_file_is_that_file(folder: Callable[..., Path]) -> None:
    file = folder("one.gguf", "other.gguf") / "one.gguf"
    assert resolve(str(file)) == file


def test_a_folder_means_its_only_model_or_the_one_that_matches_the_pattern(folder: Callable[..., Path]) -> None:
    path = folder("a-Q8_0.gguf", "readme.md", "mmproj-a.gguf")
    assert resolve(str(path)) == path / "a-Q8_0.gguf"
    folder("a-Q4_K_M.gguf")
    for pattern in ("q4_k_m", "*Q4*", "a-q4*.gguf"):
        assert resolve(str(path), pattern) == path / "a-Q4_K_M.gguf"
    assert resolve(str(path), "mmproj") == path / "mmproj-a.gguf"


def test_a_model_in_parts_is_its_first_part_if_no_part_is_missing(folder: Callable[..., Path]) -> None:
    path = folder(*PARTS)
    for name in (path, path / PARTS[0], path / PARTS[1]):
        assert resolve(str(name)) == path / PARTS[0]
    (path / PARTS[1]).unlink()
    for name in (path, path / PARTS[0]):
        with pytest.raises(StartError, match="found only 1 of the 2 parts"):
            resolve(str(name))


@pytest.mark.parametrize(
    ("names", "pattern", "message"),
    [
        (["a.gguf", "b.gguf", *PARTS], "", r"several GGUF files.*: a\.gguf, b\.gguf, big \(2 parts\)"),
        (["a-q4.gguf", "b-q4.gguf"], "q4", r"several GGUF files that match 'q4'"),
        (["a.gguf"], "q4", r"no GGUF files that match 'q4'"),
        (["a.bin"], "", "no GGUF files"),
    ],
)
def test_a_choice_that_fails_lists_the_candidates(names: list[str], pattern: str, message: str) -> None:
    with pytest.raises(StartError, match=f"model here: {message}"):
        choose(names, pattern, "here")


@pytest.mark.parametrize("path", ["models/none.gguf", "/nowhere/model", "./nothing", "~", "a b/c"])
def test_a_path_that_does_not_exist_is_named(path: str) -> None:
    with pytest.raises(StartError, match="No such file"):
        resolve(path)


# The header


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def gguf(pairs: bytes = b"", tensors: bytes = b"", counts: tuple[int, int] = (0, 0), version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + pairs + tensors


def tensor(name: bytes = b"t", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HUGE = 2**63
HOSTILE = {
    "empty": b"",
    "not GGUF": b"GGML" + bytes(100),
    "version 1": gguf(version=1),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "2^63 keys": gguf(counts=(0, HUGE)),
    "2^63 tensors": gguf(counts=(HUGE, 0)),
    "a key of 2^63 bytes": gguf(struct.pack("<Q", HUGE) + bytes(64), counts=(0, 1)),
    "a string of 2^63 bytes": gguf(string(b"k") + struct.pack("<IQ", 8, HUGE) + bytes(64), counts=(0, 1)),
    "an array of 2^63 strings": gguf(string(b"k") + struct.pack("<IIQ", 9, 8, HUGE) + bytes(64), counts=(0, 1)),
    "an array of 2^63 numbers": gguf(string(b"k") + struct.pack("<IIQ", 9, 10, HUGE) + bytes(64), counts=(0, 1)),
    "arrays in arrays": gguf(string(b"k") + struct.pack("<IIQIQ", 9, 9, 1, 9, 1) + bytes(64), counts=(0, 1)),
    "an unknown value type": gguf(string(b"k") + struct.pack("<I", 99) + bytes(64), counts=(0, 1)),
    "a key twice": gguf((string(b"k") + struct.pack("<IB", 0, 1)) * 2, counts=(0, 2)),
    "an odd alignment": gguf(string(b"general.alignment") + struct.pack("<II", 4, 3), counts=(0, 1)),
    "a negative epsilon": gguf(string(b"x.epsilon") + struct.pack("<If", 6, -1.0), counts=(0, 1)),
    "a token twice": gguf(
        string(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + string(b"a") * 2, counts=(0, 1)
    ),
    "a tensor twice": gguf(tensors=tensor() + tensor(offset=32) + bytes(96), counts=(2, 0)),
    "a tensor out of place": gguf(tensors=tensor(offset=64) + bytes(128), counts=(1, 0)),
    "a tensor beyond the end": gguf(tensors=tensor(shape=(2**40,)) + bytes(64), counts=(1, 0)),
    "2^126 elements": gguf(tensors=tensor(shape=(HUGE - 1, HUGE - 1)) + bytes(64), counts=(1, 0)),
    "an empty tensor": gguf(tensors=tensor(shape=(0,)) + bytes(64), counts=(1, 0)),
    "2^31 dimensions": gguf(tensors=string(b"t") + struct.pack("<I", 2**31) + bytes(64), counts=(1, 0)),
    "an unknown tensor type": gguf(tensors=tensor(kind=4096) + bytes(64), counts=(1, 0)),
    "half a block": gguf(tensors=tensor(shape=(33,), kind=8) + bytes(64), counts=(1, 0)),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_refused_in_one_line_and_with_little_memory(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "hostile.gguf"
    file.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(StartError) as failure:
            read_header(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert failure.value.message.startswith(f"model file {file}: ") and "\n" not in failure.value.message


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    for length in (*range(4096), *range(4096, len(DATA) - 1, 9973), len(DATA) - 1):
        file.write_bytes(DATA[:length])
        with pytest.raises(StartError):
            read_header(file)


def test_the_demo_model_passes() -> None:
    header = read_header(DEMO)
    assert header.metadata["general.architecture"] == b"llama" and header.tensors == 29


LOADER = """
import asyncio, contextlib, os, resource, sys
from pathlib import Path
from common.errors import FrameworkError, StartError
from common.config_edge import EdgeModelConfig
from edge.engine.engine import EdgeEngine
from edge.llama import model_file
from edge.llama.gguf_header import read_header
from edge.llama.trial_load import refusal

async def load(path):
    model = EdgeModelConfig(path=path, context_length=64, threads=1, sequences=1)
    async with EdgeEngine(model) as engine, engine.sequence([5]) as sequence:
        await sequence.draft(engine.tokenize("Hello\\n you") + [5, 6], 2)

resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
original, path = Path("models/demo-edge.gguf").read_bytes(), sys.argv[1]
for line in sys.stdin:
    data = bytearray(original)
    data[int(line) // 8] ^= 1 << int(line) % 8
    Path(path).write_bytes(data)
    try:
        read_header(Path(path))
        print("trial", flush=True)
        if refusal(path) is None:
            print("load", flush=True)
            with contextlib.suppress(FrameworkError):
                asyncio.run(load(path))
    except StartError:
        pass
    print("done", flush=True)
"""


def survived(bits: list[int], file: Path, log: Path) -> tuple[int, list[str]]:
    """Loads the demo model with each bit flipped, in child processes that may abort.

    Returns for how many bits the load itself did not abort (the trial before it may), and a line for each other bit.
    """
    good, bad = 0, []
    waiting = list(bits)
    while waiting:
        with log.open("ab") as errors:
            command = [sys.executable, "-c", LOADER, str(file)]
            environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
            text = "\n".join(map(str, waiting))
            ended = subprocess.run(
                command, input=text, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, check=False
            )
        words = ended.stdout.split()
        done = words.count("done")
        good += done
        if done < len(waiting):
            if words[-1] == "trial":
                good += 1
            else:
                bad.append(f"bit {waiting[done]}: {words[-1:]} {ended.returncode} {log.read_text()[-200:]}")
            done += 1
        waiting = waiting[done:]
    return good, bad


@pytest.mark.parametrize("flips", [120, pytest.param(667, marks=pytest.mark.long)])
def test_no_flipped_bit_of_a_header_aborts_the_process_that_loads_it(tmp_path: Path, flips: int) -> None:
    source = random.Random(11)
    # Two thirds of the bits outside the vocabulary: in the hyperparameters before it and the tensors after it.
    vocabulary, tensors = DATA.index(b"tokenizer.ggml.tokens"), DATA.index(b"token_embd.weight")
    spans = (0, vocabulary), (vocabulary, tensors), (tensors, tensors + 1700)
    bits = [source.randrange(8 * start, 8 * end) for start, end in spans for _ in range(flips)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(survived, bits[part::2], tmp_path / f"{part}.gguf", tmp_path / f"{part}.log") for part in (0, 1)
        ]
        results = [run.result() for run in runs]
    assert [fault for _, bad in results for fault in bad] == []
    assert sum(good for good, _ in results) == len(bits) == 3 * flips


def block_count(data: bytes, count: int) -> bytes:
    at = data.index(b"llama.block_count") + len(b"llama.block_count") + 4
    return data[:at] + struct.pack("<I", count) + data[at + 4 :]


async def test_a_file_that_llama_cpp_aborts_on_aborts_only_the_child_process(tmp_path: Path) -> None:
    file = tmp_path / "many.gguf"
    file.write_bytes(block_count(DATA, 2**31))
    read_header(file)  # the header check cannot detect it
    with pytest.raises(StartError, match=r"would abort on it: .*n_layer") as failure:
        await prepare(str(file))
    assert "\n" not in failure.value.message


def test_without_the_trial_such_a_file_aborts_the_process_that_loads_it(tmp_path: Path) -> None:
    file = tmp_path / "many.gguf"
    file.write_bytes(block_count(DATA, 2**31))
    load = (
        "from common.config_edge import EdgeModelConfig; from edge.llama.model import Llama\n"
        f"Llama(EdgeModelConfig(path={str(file)!r}, context_length=64, threads=1, sequences=1))"
    )
    environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
    ended = subprocess.run([sys.executable, "-c", load], env=environment, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGABRT


async def test_a_file_that_llama_cpp_refuses_is_refused_with_its_reason(tmp_path: Path) -> None:
    file = tmp_path / "short.gguf"
    file.write_bytes(block_count(DATA, 4))
    with pytest.raises(StartError, match=r"llama\.cpp cannot load it: .*not found"):
        await prepare(str(file))


async def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "none.gguf"
    file.write_bytes(gguf())
    with pytest.raises(StartError, match="it has no tensors"):
        await prepare(str(file))


async def test_a_good_file_is_found_and_passes() -> None:
    assert await prepare(str(DEMO)) == DEMO
    assert await prepare("models", "demo-edge.gguf") == DEMO


# The hub


class Hub:
    """A hub with one repository, on loopback; interrupts its first `breaks` downloads half-way."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.breaks, self.requests, self.sent = files, 0, 0, 0
        self.ranges: list[str] = []
        self.stalls: asyncio.Event | None = None
        """If set, a download stops half-way and sets the event."""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/models/someone/model/tree/main", self.tree)
        app.router.add_get("/api/models/nobody/else/tree/main", self.unknown)
        app.router.add_get("/someone/model/resolve/main/{file}", self.file)
        return app

    async def tree(self, request: web.Request) -> web.Response:
        self.requests += 1
        return web.json_response(
            [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in self.files.items()]
        )

    async def unknown(self, request: web.Request) -> web.Response:
        return web.Response(status=404, headers={"X-Error-Code": "RepoNotFound"})

    async def file(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        data = self.files[request.match_info["file"]]
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"X-Repo-Commit": "a" * 40, "ETag": f'"{hash(data)}"', "Accept-Ranges": "bytes"}
        headers["Content-Length"] = str(len(data) - start)
        if start:
            self.ranges.append(request.headers["Range"])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        await response.prepare(request)
        if request.method == "GET":
            end = (start + len(data)) // 2 if self.breaks or self.stalls else len(data)
            await response.write(data[start:end])
            self.sent += end - start
            if self.stalls:
                self.stalls.set()
                await asyncio.sleep(60)
            if self.breaks:
                self.breaks -= 1
                assert request.transport
                request.transport.close()
        return response


@pytest_asyncio.fixture
async def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    made = Hub({"model-Q8_0.gguf": DATA, "model-Q4.gguf": b"GGUF", "README.md": b"hello"})
    runner = web.AppRunner(made.app(), handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    for name, value in {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }.items():
        monkeypatch.setenv(name, value)
    yield made
    await runner.cleanup()


async def test_a_hub_id_is_downloaded_once_and_then_works_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    file = await prepare("someone/model:Q8_0")
    assert file.read_bytes() == DATA
    asked, hub.files = hub.requests, {}
    assert await prepare("someone/model", "q8_0") == file
    assert hub.requests == asked
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert await prepare("someone/model:Q8_0") == file
    with pytest.raises(StartError, match="the hub cannot deliver it"):
        await prepare("someone/model:Q4")


async def test_an_interrupted_download_resumes(hub: Hub) -> None:
    hub.breaks, large = 1, DATA + bytes(30 << 20)  # huggingface_hub writes 10 MiB at a time
    hub.files["model-Q8_0.gguf"] = large
    file = await prepare("someone/model:Q8_0")
    assert file.read_bytes() == large
    assert hub.ranges == [f"bytes={10 << 20}-"]


async def test_a_hub_id_that_matches_several_files_or_none_is_refused(hub: Hub) -> None:
    with pytest.raises(StartError, match=r"several GGUF files.*model-Q4\.gguf, model-Q8_0\.gguf"):
        await prepare("someone/model")
    with pytest.raises(StartError, match="no GGUF files that match 'Q2'"):
        await prepare("someone/model:Q2")
    with pytest.raises(StartError, match="neither a local file nor a repository"):
        await prepare("nobody/else")


async def test_cancelling_ends_the_download_and_leaves_no_partial_file(hub: Hub, tmp_path: Path) -> None:
    hub.stalls = asyncio.Event()
    waiting = asyncio.create_task(prepare("someone/model:Q8_0"))
    await asyncio.wait_for(hub.stalls.wait(), 60)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not list((tmp_path / "hub").rglob("*.incomplete"))
