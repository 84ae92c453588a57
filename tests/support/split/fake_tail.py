"""A fake of the tail's engine, whose token depends on all states in order and whose memory is bounded."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from vllm.sampling_params import SamplingParams

from cloud.split.connection import SplitBackend
from cloud.split.context_manager import CloudContextManager, Limits
from cloud.split.engine import TailEngine
from cloud.split.pool import TailPool
from cloud.split.route import SplitRoute
from cloud.verify.resident_pool import blocks_for
from cloud.vllm_plugin.keys import KEEP_KEY, STATES_KEY
from common.config_values import ServerConfig
from common.errors import ContextLengthError, EngineError
from common.http_server import HTTPServer, make_app
from common.protocol.split_manifest import Segment, SplitManifest, TailManifest
from common.types import Sampling

HIDDEN = 4
VOCABULARY = 9973


def some_states(session: int, start: int, stop: int) -> NDArray[np.float32]:
    """[n, HIDDEN] of small whole numbers, which every encoding but int8 represents exactly."""
    at = np.arange(start, stop, dtype=np.float32)[:, None]
    return ((at * 7 + session * 13 + np.arange(HIDDEN, dtype=np.float32)) % 101).astype(np.float32)


def token_after(states: NDArray[np.float32]) -> int:
    """The token after all of `states`, in their order."""
    weights = np.arange(1, len(states) + 1)
    return int((states.sum(axis=1) * weights).sum()) % VOCABULARY


def right_for(session: int, position: int) -> int:
    return token_after(some_states(session, 0, position))


class FakeTail:
    """Answers after `seconds`, while its `gate` is open; sets `overrun` when it is made to hold more than it can."""

    def __init__(self, places: int = 4, blocks: int = 12, seconds: float = 0.0) -> None:
        self.max_model_len = 100
        self.block_size = 4
        self.max_num_seqs = places
        self.kv_blocks = blocks
        self.seconds = seconds
        self.gate = asyncio.Event()
        self.gate.set()
        self.steps = 0
        self.rows = 0
        self.running = 0
        self.max_running = 0
        self.lengths: dict[object, int] = {}
        self.blocks: dict[object, int] = {}
        """The most positions that each request has had: what goes back keeps its blocks."""
        self.overrun = False
        self.dead = False
        self.rewinds = True
        self.ended = Counter[str]()

    def params(self, position: int, sampling: Sampling, top: int = 0) -> SamplingParams:
        if position >= self.max_model_len:
            raise ContextLengthError("too long")
        return SamplingParams(temperature=sampling.temperature, max_tokens=1, logprobs=top)

    async def generate(self, feed: AsyncGenerator[Any, None], params: SamplingParams) -> AsyncGenerator[Any, None]:
        me, seen = object(), list[NDArray[np.float32]]()
        self.lengths[me] = 0
        try:
            async for part in feed:
                rows = np.frombuffer(part.sampling_params.extra_args[STATES_KEY], "<f4").reshape(-1, HIDDEN)
                assert len(part.prompt["prompt_token_ids"]) == len(rows) > 0
                keep = part.sampling_params.extra_args[KEEP_KEY]
                assert keep == self.lengths[me] or (self.rewinds and 0 < keep < self.lengths[me])
                seen = [*([np.concatenate(seen)[:keep]] if seen else []), rows]
                self.lengths[me] = keep + len(rows)
                self.blocks[me] = max(self.blocks.get(me, 0), self.lengths[me])
                self._check_room()
                yield await self._step(np.concatenate(seen), len(rows), part.sampling_params.logprobs)
        finally:
            await feed.aclose()
            del self.lengths[me]
            self.blocks.pop(me, None)
            self.ended["request"] += 1

    async def _step(self, seen: NDArray[np.float32], rows: int, top: int) -> Any:
        self.running += 1
        self.max_running = max(self.running, self.max_running)
        try:
            await asyncio.sleep(self.seconds)
            await self.gate.wait()
        finally:
            self.running -= 1
        if self.dead:
            raise EngineError("the engine has died")
        self.steps += 1
        self.rows += rows
        token = token_after(seen)
        likeliest = {token + place: SimpleNamespace(logprob=-0.5 - place, rank=place + 1) for place in range(top or 1)}
        drawn = SimpleNamespace(token_ids=[token], finish_reason="length", logprobs=[likeliest])
        return SimpleNamespace(outputs=[drawn])

    def _check_room(self) -> None:
        blocks = sum(blocks_for(length + 1, self.block_size, self.max_model_len) for length in self.blocks.values())
        self.overrun |= blocks > self.kv_blocks - 1 or len(self.lengths) > self.max_num_seqs


def as_engine(tail: FakeTail) -> TailEngine:
    return cast(TailEngine, tail)


MANIFEST = SplitManifest(
    version=1,
    model="fake",
    fingerprint="f" * 64,
    architecture="llama",
    layers=8,
    hidden=HIDDEN,
    vocab_size=VOCABULARY,
    exits=[2],
    segments=[Segment("segment-1.gguf", "", 0, 1, "f32")],
    tail=TailManifest("tail", "", 2, 7),
    tokenizer="",
    temperatures=[1.0],
    exits_trained="",
)


@dataclass
class FakeTailServer:
    """A real server over a fake tail."""

    tail: FakeTail
    server: HTTPServer
    contexts: CloudContextManager
    pool: TailPool

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"


@asynccontextmanager
async def fake_cloud(
    tail: FakeTail | None = None,
    config: ServerConfig | None = None,
    limits: Limits | None = None,
    work: Callable[[int], AbstractContextManager[object]] = lambda _: nullcontext(),
    port: int = 0,
) -> AsyncIterator[FakeTailServer]:
    tail = tail or FakeTail()
    contexts = CloudContextManager(limits or Limits())
    pool = TailPool(as_engine(tail), contexts)
    app = make_app(config)
    app.router.add_get("/split", SplitRoute(SplitBackend(MANIFEST, contexts, pool, work)).handle)
    server = HTTPServer(app, "127.0.0.1", port)
    await server.start()
    try:
        yield FakeTailServer(tail, server, contexts, pool)
    finally:
        await server.stop()
        await pool.close()
