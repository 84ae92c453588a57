"""The segments of a split model on the edge: their thread, and the leases on their sequences."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Self

import numpy as np

from common.config_edge import EdgeModelConfig, LimitsConfig
from common.errors import ContextLengthError, EngineError
from common.fair_queue import WeightOf, equal_weights
from common.protocol.split_manifest import SplitManifest
from common.types import GREEDY, Sampling
from edge.engine.loop_waker import LoopWaker
from edge.engine.sequence_pool import SequencePool
from edge.engine.text_model import TextModel
from edge.engine.worker import EngineThread
from edge.llama.segment import LlamaSegment, States
from edge.llama.vocabulary import LlamaVocabulary
from edge.split.loading import load_segment
from edge.split.scheduler import ExitPrediction, ExitRequest, Freed, SegmentBatcher, SegmentJob

__all__ = ["ExitPrediction", "SegmentSequence", "Segments"]


class Segments(TextModel):
    """All segments that `manifest` names, from `folder`, run by one thread of their own: `async with`.

    `model` says how: context length (cut to what the model was trained for), sequences, threads, KV cache; its path is
    not read. Entering raises ConfigError for files that do not match the manifest, StartError for files that cannot be
    loaded.
    """

    def __init__(
        self,
        manifest: SplitManifest,
        folder: Path,
        model: EdgeModelConfig | None = None,
        limits: LimitsConfig | None = None,
        weight: WeightOf = equal_weights,
    ) -> None:
        model = model or EdgeModelConfig()
        self.manifest = manifest
        self._folder = folder
        self._model = model
        self._limits = limits or LimitsConfig()
        self._leases = SequencePool(model.sequences, self._limits, weight=weight)
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
    async def sequence(
        self, tokens: int, sampling: Sampling = GREEDY, admitted: bool = False
    ) -> AsyncIterator["SegmentSequence"]:
        """Lends a sequence to one answer, whose prompt has so many `tokens`.

        Waits for a free one; raises OverloadedError if too many requests wait already, unless it is `admitted`, and
        ContextLengthError if the prompt does not fit. Leaving frees the sequence at once.
        """
        if tokens > self.context_length:
            raise ContextLengthError(f"{tokens} tokens do not fit the segments' context of {self.context_length}")
        assert self.vocabulary, "it runs"
        async with self._leases.lend(tokens, lambda _: 0, admitted) as lent:
            try:
                yield SegmentSequence(self, lent, sampling)
            finally:
                self._inbox.put(Freed(lent))

    def admit(self, requests: int, tokens: int) -> AbstractContextManager[None]:
        return self._leases.admit(requests, tokens)

    @property
    def alive(self) -> bool:
        """Whether the segments are loaded and their thread is not stuck in a step."""
        return self._thread.alive

    @property
    def work(self) -> list[tuple[int, int]]:
        """For each segment: its steps since the start, and the positions that it computed in them."""
        engine = self._thread.scheduler
        return list(zip(engine.steps, engine.rows, strict=True)) if engine else []

    def stats(self) -> dict[str, object]:
        """Work since the start, and the sequences lent and requests waiting now."""
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
        """Drops the job at the end of the running step; the step is aborted if no other job needs it."""
        job.cancelled = True
        if self._thread.scheduler is not None:
            self._thread.scheduler.abort_unwanted_step()

    def works_on(self, job: SegmentJob) -> bool:
        """Whether the segments compute, and the job has a part in it, or will have."""
        return self._thread.works_on(job)

    def _load(self, waker: LoopWaker) -> SegmentBatcher:
        """Loads the segments, in their thread; if one fails, frees those loaded before."""
        manifest, loaded = self.manifest, list[LlamaSegment]()
        with ExitStack() as stack:
            manifest.check_segments(self._folder)
            for number in range(self.count):
                # The cloud needs the first segment's states, each later segment those of the one before it.
                shows_states = number == 0 or number < self.count - 1
                segment = load_segment(manifest, self._folder, number, self._model, shows_states)
                loaded.append(segment)
                stack.callback(segment.free)
            vocabulary = self._vocabulary = loaded[0].vocabulary
            self._context_length = min(segment.context_length for segment in loaded)
            stack.pop_all()
        return SegmentBatcher(loaded, manifest.temperatures, vocabulary.end_tokens, self._inbox, waker.wake)


class SegmentSequence:
    """One answer's lease: its position in every segment, and their output states. Takes one call at a time.

    A segment's *pending* positions are those that the segment before it has computed and it has not yet; one job
    catches them up.
    """

    def __init__(self, segments: Segments, sequence: int, sampling: Sampling) -> None:
        self._segments = segments
        self._sequence = sequence
        self._sampling = sampling
        self.held = [0] * segments.count
        """Positions that each segment has computed."""
        shape = segments.context_length, segments.manifest.hidden
        self._states = [np.empty(shape, np.float32) for _ in range(max(1, segments.count - 1))]
        """The states after each segment but the last, [context, H]; the OS commits their memory as it is written."""
        self.waited_ms = 0.0
        """Milliseconds that the answer waited for its segments."""
        self.predictions = 0
        """Tokens that its exits predicted, also those that were not taken."""

    @property
    def exits(self) -> list[int]:
        """The number of layers before each segment's exit."""
        return self._segments.manifest.exits

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self._segments.end_tokens

    @property
    def states(self) -> States:
        """The states after the first segment, [n, H], of all positions computed so far; they no longer change."""
        return self._states[0][: self.held[0]]

    def pending(self, segment: int) -> int:
        """Positions that the first segment has computed and `segment` has not."""
        return self.held[0] - self.held[segment]

    async def draw(
        self, token_ids: list[int], limit: int, confident: Callable[[float], bool]
    ) -> AsyncGenerator[list[ExitPrediction], None]:
        """Reads `token_ids` in the first segment, then yields its exit's predictions in parts.

        Ends after `limit` predictions, or after the first whose confidence `confident` refuses; the tokens before it
        are read too. With `limit` 0 the exit is not computed.
        """
        job = self._job(0, token_ids, limit, confident)
        with self._submitted(job):
            while part := await self._part(job):
                yield part

    async def catch_up(self, segment: int, confident: Callable[[float], bool]) -> ExitPrediction:
        """Computes the pending positions of all segments up to this one; returns this one's exit's prediction."""
        predictions: list[ExitPrediction] = []
        for at in range(1, segment + 1):
            pending = self._states[at - 1][self.held[at] : self.held[at - 1]]
            job = self._job(at, pending, int(at == segment), confident)
            with self._submitted(job):
                predictions = await self._part(job)
        return predictions[0]

    def _job(self, at: int, inputs: list[int] | States, limit: int, confident: Callable[[float], bool]) -> SegmentJob:
        assert len(inputs), "a segment without pending positions has nothing to compute"
        states = self._states[at] if at < len(self._states) else None
        exit = ExitRequest(limit, self._sampling, confident)
        return SegmentJob(at, self._sequence, self.held[at], inputs, states, exit)

    async def _part(self, job: SegmentJob) -> list[ExitPrediction]:
        """The job's predictions since the last part; empty at its end."""
        began = time.perf_counter()
        await job.wait(self._segments.works_on)
        self.held[job.segment] = job.position
        self.waited_ms += (time.perf_counter() - began) * 1e3
        part = job.part()
        self.predictions += len(part)
        return part

    @contextmanager
    def _submitted(self, job: SegmentJob) -> Iterator[None]:
        self._segments.submit(job)
        try:
            yield
        finally:
            if not job.done:
                self._segments.cancel(job)
