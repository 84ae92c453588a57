"""Measures one cut of a split model: steps of its segments alone, and answers with its tail in vLLM; fits speeds."""

import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cloud.engine.supervisor import SupervisorTiming
from cloud.routes.admission import Admission
from cloud.split.service import SplitService
from common import config as configs
from common.cloud_client.split_session import CloudToken
from common.config_cloud import CloudSplitConfig
from common.config_edge import EdgeModelConfig
from common.decoding.request import DecodingRequest
from common.http_server import HTTPServer, make_app
from common.protocol.openai import Message
from common.protocol.split_manifest import SplitManifest
from common.types import GREEDY
from edge.llama.segment import Feed
from edge.split.cloud_tail import SplitClouds
from edge.split.engine import EdgeInferenceEngine
from edge.split.loading import load_segment
from experiments.harness.delay_proxy import DelayProxy
from models.partition.split_cost import EngineSpeed, NetworkSpeed

MODEL = EdgeModelConfig(context_length=256, threads=1, threads_batch=1, sequences=1)
POSITIONS = (1, 1, 1, 1, 8, 16, 32)
"""Of the steps that are timed: most steps of an answer have one."""
REPEATS = 15
"""The fastest one counts: others shared the core with something."""
TAIL_ARGS = {"dtype": "float32", "max_model_len": 256, "max_num_batched_tokens": 512, "max_num_seqs": 4}
TAIL_ARGS |= {"kv_cache_memory_bytes": 2**26}
MAX_TOKENS = 40


class TimedStep(NamedTuple):
    """The milliseconds of a step with so many layers, and `once` more that compute for its last position only."""

    layers: float
    once: float
    positions: int
    ms: float


def fitted(steps: Sequence[TimedStep]) -> EngineSpeed:
    """The speed under which `EngineSpeed.ms` comes closest to these steps (least squares of relative errors)."""
    ms = np.array([step.ms for step in steps])
    columns = [(1.0, step.layers + step.once, step.layers * (step.positions - 1)) for step in steps]
    (step_ms, layer_ms, further_ms), *_ = np.linalg.lstsq(np.array(columns) / ms[:, None], np.ones(len(ms)), rcond=None)
    layer_ms = max(float(layer_ms), 1e-6)
    return EngineSpeed(layer_ms, max(float(step_ms), 0.0), float(np.clip(further_ms / layer_ms, 0.0, 1.0)))


def time_segment(manifest: SplitManifest, folder: Path, head: float) -> list[TimedStep]:
    """Times steps of the first segment without its exit, and single positions with it; `head`: its work in layers."""
    segment = load_segment(manifest, folder, 0, MODEL)
    layers, found = manifest.exits[0], list[TimedStep]()
    try:
        for positions in (*POSITIONS, 0):  # 0: one position, with its exit
            feed = Feed(0, list(range(10, 10 + max(1, positions))), int(positions == 0))
            took = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                segment.decode([feed])
                took.append((time.perf_counter() - began) * 1e3)
                segment.forget(0)
            found.append(TimedStep(layers, head * feed.rows, len(feed.inputs), min(took)))
    finally:
        segment.free()
    return found


class AnswerTimes(NamedTuple):
    """Of one answer: milliseconds, tokens of its prompt and its own, and of these those of the cloud; bytes sent."""

    ms: float
    prompt: int
    tokens: int
    cloud_tokens: int
    bytes_up: int


@asynccontextmanager
async def served_tail(folder: Path, core: int | None) -> AsyncIterator[HTTPServer]:
    """A server with only the tail in `folder`, whose engine's processes stay on `core`; this process on the others."""
    before = os.sched_getaffinity(0)
    split = CloudSplitConfig(manifest=str(folder), engine_args=TAIL_ARGS)
    app = make_app(None)
    service = SplitService(split, SupervisorTiming(), Admission(64, 2**16).admit)
    service.add_to(app)
    server = HTTPServer(app, "127.0.0.1", 0)
    if core is not None:
        os.sched_setaffinity(0, {core})  # the engine's processes inherit it
    try:
        await server.start()
        await service.supervisor.wait_up()
        if core is not None:
            os.sched_setaffinity(0, before - {core})
        yield server
    finally:
        await server.stop()
        os.sched_setaffinity(0, before)


@asynccontextmanager
async def split_edge(
    folder: Path, port: int, network: NetworkSpeed
) -> AsyncIterator[tuple[EdgeInferenceEngine, list[TimedStep]]]:
    """An edge with the segments in `folder` behind a simulated network, and a list that gets the cloud's steps."""
    bandwidth = network.uplink_mbit * 1e6 / 8
    async with DelayProxy("127.0.0.1", port, network.rtt_ms / 2e3, bandwidth) as proxy:
        flags = [f"edge.split.manifest={folder}", f"communication.cloud_endpoint={proxy.url}"]
        flags += ["edge.model.threads=1", "edge.model.threads_batch=1", "edge.split.deadline_ms=60000"]
        engine = EdgeInferenceEngine(configs.load(None, flags))
        steps: list[TimedStep] = []
        _listen(engine._split_clouds, steps, engine.manifest.layers - engine.manifest.exits[0])
        async with engine:
            yield engine, steps


def _listen(clouds: SplitClouds, steps: list[TimedStep], layers: int) -> None:
    record = clouds.record

    def also(token: CloudToken) -> None:
        steps.append(TimedStep(layers, 0.0, token.computed, token.cloud_ms))
        record(token)

    clouds.record = also  # type: ignore[method-assign]


async def answer_all(
    engine: EdgeInferenceEngine, questions: Sequence[str], repeats: int, use_exits: bool
) -> list[AnswerTimes]:
    """Asks the questions one after the other, greedily, so often; of each answer the fastest time counts."""
    found = [[await _answer(engine, question, use_exits) for question in questions] for _ in range(repeats)]
    return [min(times) for times in zip(*found, strict=True)]


def fastest(steps: Sequence[TimedStep], repeats: int) -> list[TimedStep]:
    """The fastest of each step of answers that were repeated as a whole."""
    each = len(steps) // repeats
    return [min(steps[at::each], key=lambda step: step.ms) for at in range(each)]


async def _answer(engine: EdgeInferenceEngine, question: str, use_exits: bool) -> AnswerTimes:
    prompt = await engine.template.render([Message(role="user", content=question)])
    ids = engine.segments.tokenize(prompt, parse_special=True)
    request = DecodingRequest(ids, MAX_TOKENS, GREEDY, engine.plan(use_exits=use_exits))
    began = time.perf_counter()
    async with engine.answer(request) as split, aclosing(split.run()) as running:
        async for _ in running:
            pass
    report = split.answer.report
    tokens = len(split.answer.committed) - len(ids)
    ms = (time.perf_counter() - began) * 1e3
    return AnswerTimes(ms, len(ids), tokens, report.cloud_steps, report.bytes_up)
