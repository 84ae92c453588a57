"""A split model's segments on the edge, and who has which of their sequences. Knows no thresholds and no cloud."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import numpy as np

from common.config_schema import EdgeModelConfig, LimitsConfig
from common.errors import ContextLengthError, EngineError
from common.protocol.split_manifest import SplitManifest
from common.types import GREEDY, Sampling
from edge.engine.loop_waker import LoopWaker
from edge.engine.sequence_pool import SequencePool
from edge.engine.text_model import TextModel
from edge.engine.worker import EngineThread
from edge.llama.segment import LlamaSegment, SegmentShape, States
from edge.llama.vocabulary import LlamaVocabulary
from edge.split.scheduler import ExitPrediction, Freed, SegmentBatcher, SegmentJob

__all__ = ["ExitPrediction", "SegmentSequence", "Segments"]


class Segments(TextModel):
    """All segments of the model whose manifest is `manifest`, in `folder`, in one thread of their own: `async with`.

    `context_length` tokens fit in each of `sequences` sequences (cut to what the model was trained for); the other
    arguments are as for `EdgeEngine`. Entering raises ConfigError for files that are not the manifest's, StartError
    for those that cannot be loaded.
    """

    def __init__(
        self,
        manifest: SplitManifest,
        folder: Path,
        *,
        context_length: int = 1024,
        gpu_layers: int = 0,
        threads: int = 0,
        sequences: int = 4,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
        limits: LimitsConfig | None = None,
    ) -> None:
        self.manifest = manifest
        self._folder = folder
        self._options: dict[str, Any] = {
            "context_length": context_length,
            "gpu_layers": gpu_layers,
            "threads": threads,
            "sequences": sequences,
            "kv_type": kv_type,
            "flash_attention": "auto" if flash_attention is None else flash_attention,
        }
        self._limits = limits or LimitsConfig()
        self._leases = SequencePool(sequences, self._limits)
        self._vocabulary: LlamaVocabulary | None = None
        self._context_length = 0
        self._inbox: SimpleQueue[SegmentJob | Freed | None] = SimpleQueue()
        self._thread = EngineThread("edge-segments", self._inbox, self._load)

    async def __aenter__(self) -> Self:
        await self._thread.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._thread.close()

    @asynccontextmanager
    async def sequence(self, tokens: int, sampling: Sampling = GREEDY) -> AsyncIterator["SegmentSequence"]:
        """Lends a sequence for an answer to a prompt of so many `tokens`, drawn as `sampling` says.

        Waits for a free one, or raises OverloadedError if too many wait already, ContextLengthError if they do not
        fit; leaving frees it at once.
        """
        if tokens > self.context_length:
            raise ContextLengthError(f"{tokens} tokens do not fit the segments' context of {self.context_length}")
        assert self.vocabulary, "it runs"
        async with self._leases.lend(tokens, lambda _: 0) as lent:
            try:
                yield SegmentSequence(self, lent, sampling)
            finally:
                self._inbox.put(Freed(lent))

    @property
    def alive(self) -> bool:
        """Whether the segments are loaded and their thread is not stuck in a step."""
        return self._thread.alive

    @property
    def work(self) -> list[tuple[int, int]]:
        """Steps of each segment since the start, and positions that it computed in them."""
        engine = self._thread.scheduler
        return list(zip(engine.steps, engine.rows, strict=True)) if engine else []

    def stats(self) -> dict[str, object]:
        """What they have computed, and who has a sequence or waits for one now."""
        work = [{"steps": steps, "rows": rows} for steps, rows in self.work]
        return {"segments": work, **self._leases.stats()}

    @property
    def count(self) -> int:
        return len(self.manifest.segments)

    @property
    def vocabulary(self) -> LlamaVocabulary:
        """The first segment's."""
        if self._vocabulary is None or self._thread.closing:
            raise EngineError("the edge's segments are not running")
        return self._vocabulary

    @property
    def model_name(self) -> str:
        return self.manifest.model

    @property
    def context_length(self) -> int:
        most = self._limits.max_tokens_request
        return min(self._context_length, most) if most else self._context_length

    def submit(self, job: SegmentJob) -> None:
        """Hands a job to the segments' thread."""
        assert self.vocabulary, "it runs"
        self._inbox.put(job)

    def cancel(self, job: SegmentJob) -> None:
        """Nobody wants the job any more: it leaves at the end of the step under way, which ends now if it can."""
        job.cancelled = True
        if self._thread.scheduler is not None:
            self._thread.scheduler.abort_unwanted_step()

    def _load(self, waker: LoopWaker) -> SegmentBatcher:
        """In the thread; what was loaded is freed if the rest cannot be."""
        manifest, loaded = self.manifest, list[LlamaSegment]()
        with ExitStack() as stack:
            for path, part in zip(manifest.check_segments(self._folder), manifest.segments, strict=True):
                model = EdgeModelConfig(path=str(path), **self._options)
                shape = SegmentShape(part.last - part.first + 1, manifest.hidden, manifest.vocab_size)
                # The cloud is fed what the first one leaves, each segment what the one before it does.
                shows_states = not loaded or len(loaded) < self.count - 1
                segment = LlamaSegment(model, shape, first=not loaded, shows_states=shows_states)
                loaded.append(segment)
                stack.callback(segment.free)
            vocabulary = self._vocabulary = loaded[0].vocabulary
            self._context_length = min(segment.context_length for segment in loaded)
            stack.pop_all()
        return SegmentBatcher(loaded, manifest.temperatures, vocabulary.end_tokens, self._inbox, waker.wake)


class SegmentSequence:
    """One answer's lease: its place in every segment, and the states that they have left. One thing is done at a time.

    A segment *owes* the positions that the one before it has computed and it has not; they are caught up in one job.
    """

    def __init__(self, segments: Segments, sequence: int, sampling: Sampling) -> None:
        self._segments = segments
        self._sequence = sequence
        self._sampling = sampling
        self.held = [0] * segments.count
        """Positions that each segment has computed."""
        shape = segments.context_length, segments.manifest.hidden
        self._states = [np.empty(shape, np.float32) for _ in range(max(1, segments.count - 1))]
        """What each segment, the last one apart, left of its positions; memory is only taken as it is written."""
        self.waited_ms = 0.0
        """Milliseconds that the answer waited for its segments."""
        self.guesses = 0
        """Tokens that its exits said, those included that were not taken."""

    @property
    def exits(self) -> list[int]:
        """After how many layers each segment's exit is."""
        return self._segments.manifest.exits

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self._segments.end_tokens

    @property
    def states(self) -> States:
        """Those after the first segment, [n, H], of all positions that it has computed; they stay as they are."""
        return self._states[0][: self.held[0]]

    def owed(self, segment: int) -> int:
        """Positions that `segment` has to catch up, once the first one has computed them."""
        return self.held[0] - self.held[segment]

    async def draw(
        self, token_ids: list[int], limit: int, sure: Callable[[float], bool]
    ) -> AsyncGenerator[list[ExitPrediction], None]:
        """Reads `token_ids` in the first segment, then draws by its exit, in parts, until it is not sure any more.

        The last of up to `limit` guesses is the first one that `sure` denies of its confidence, if any is; what was
        guessed before it is read. With `limit` 0 the exit is not heard.
        """
        job = self._job(0, token_ids, limit, sure)
        with self._submitted(job):
            while part := await self._part(job):
                yield part

    async def catch_up(self, segment: int, sure: Callable[[float], bool]) -> ExitPrediction:
        """Has this segment, and those before it, compute what they owe; returns what this one's exit says is next."""
        guesses: list[ExitPrediction] = []
        for at in range(1, segment + 1):
            owed = self._states[at - 1][self.held[at] : self.held[at - 1]]
            job = self._job(at, owed, int(at == segment), sure)
            with self._submitted(job):
                guesses = await self._part(job)
        return guesses[0]

    def _job(self, at: int, inputs: list[int] | States, limit: int, sure: Callable[[float], bool]) -> SegmentJob:
        assert len(inputs), "a segment is asked only for what it owes"
        states = self._states[at] if at < len(self._states) else None
        return SegmentJob(at, self._sequence, self.held[at], inputs, states, limit, self._sampling, sure)

    async def _part(self, job: SegmentJob) -> list[ExitPrediction]:
        """What the job has guessed since the last part; nothing at its end."""
        began = time.perf_counter()
        await job.wait()
        self.held[job.segment] = job.position
        self.waited_ms += (time.perf_counter() - began) * 1e3
        part = job.part()
        self.guesses += len(part)
        return part

    @contextmanager
    def _submitted(self, job: SegmentJob) -> Iterator[None]:
        self._segments.submit(job)
        try:
            yield
        finally:
            if not job.done:
                self._segments.cancel(job)
