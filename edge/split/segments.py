"""The segments of a split model on the edge: their thread, and the leases on their sequences."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Self

from common.config_edge import EdgeCacheConfig, EdgeModelConfig, LimitsConfig
from common.errors import ContextLengthError, EngineError
from common.fair_queue import WeightOf, equal_weights
from common.http.request_context import current_tenant
from common.protocol.split_manifest import SplitManifest
from common.types import GREEDY, Sampling
from edge.engine.loop_waker import LoopWaker
from edge.engine.sequence_pool import SequencePool
from edge.engine.text_model import TextModel
from edge.engine.worker import EngineThread
from edge.llama.memory import ELEMENT_BYTES, kv_shape
from edge.llama.segment import LlamaSegment
from edge.llama.vocabulary import LlamaVocabulary
from edge.split.held import Begun, HeldSequences
from edge.split.jobs import ExitPrediction, SegmentJob
from edge.split.loading import load_segment
from edge.split.scheduler import Ended, Freed, SegmentBatcher
from edge.split.sequence import SegmentSequence

__all__ = ["ExitPrediction", "SegmentSequence", "Segments"]


class Segments(TextModel):
    """All segments that `manifest` names, from `folder`, run by one thread of their own: `async with`.

    `model` says how: context length (cut to what the model was trained for), sequences, threads, KV cache; its path is
    not read. `cache`: how many bytes of earlier answers are kept, those included that `beside` tells, which others
    keep. Entering raises ConfigError for files that do not match the manifest, StartError for files that cannot be
    loaded.
    """

    def __init__(
        self,
        manifest: SplitManifest,
        folder: Path,
        model: EdgeModelConfig | None = None,
        limits: LimitsConfig | None = None,
        weight: WeightOf = equal_weights,
        cache: EdgeCacheConfig | None = None,
        beside: Callable[[], int] = lambda: 0,
    ) -> None:
        model = model or EdgeModelConfig()
        self.manifest = manifest
        self._folder = folder
        self._model = model
        self._limits = limits or LimitsConfig()
        self._cache = cache or EdgeCacheConfig()
        self._beside = beside
        self._leases = SequencePool(model.sequences, self._limits, weight=weight)
        self._vocabulary: LlamaVocabulary | None = None
        self._context_length = 0
        self._held = HeldSequences(0, 0, 0, 0)
        self._position_bytes = 1
        self._read = {"prompt_tokens": 0, "reused_prompt_tokens": 0}
        """Of answers that may find KV: tokens of prompts, and those of them whose KV was found."""
        self._inbox: SimpleQueue[SegmentJob | Begun | Ended | Freed | None] = SimpleQueue()
        self._thread = EngineThread("edge-segments", self._inbox, self._load)

    async def __aenter__(self) -> Self:
        await self._thread.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._thread.close()

    @asynccontextmanager
    async def sequence(
        self,
        tokens: int,
        sampling: Sampling = GREEDY,
        admitted: bool = False,
        prompt: Sequence[int] | None = None,
        top_logprobs: int = 0,
    ) -> AsyncIterator[SegmentSequence]:
        """Lends a sequence to one answer, whose prompt has so many `tokens`.

        With `prompt` it begins with what earlier answers to the same tenant (`current_tenant`) have computed of it,
        all but its last token, and what it computes is kept for later ones; else it begins and ends with nothing.
        Waits for a free one; raises OverloadedError if too many requests wait already, unless it is `admitted`, and
        ContextLengthError if the prompt does not fit.
        """
        if tokens > self.context_length:
            raise ContextLengthError(f"{tokens} tokens do not fit the segments' context of {self.context_length}")
        assert self.vocabulary, "it runs"
        wanted, tenant = list(prompt or ())[:-1], current_tenant.get() if prompt else None
        lease = self._leases.lend(tokens, lambda free: self._held.reusable(free, wanted, tenant), admitted)
        async with lease as lent:
            self._inbox.put(self._held.begin(lent, wanted, tenant))
            sequence = SegmentSequence(self, lent, self._held[lent], sampling, top_logprobs)
            if prompt:
                self._read["prompt_tokens"] += len(prompt)
                self._read["reused_prompt_tokens"] += sequence.reused
            try:
                yield sequence
            finally:
                self._end(lent, keep=bool(prompt) and not sequence.failed)

    def _end(self, sequence: int, keep: bool) -> None:
        room = max(0, self._cache.ram_bytes - self._beside())
        forgotten = self._held.end(sequence, keep, most=room // self._position_bytes)
        if sequence not in forgotten:
            self._inbox.put(Ended(sequence))
        for each in forgotten:
            self._inbox.put(Freed(each))

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
        """Work and KV found since the start, and the sequences lent and requests waiting now."""
        work = [{"steps": steps, "rows": rows} for steps, rows in self.work]
        return {"segments": work, **self._read, **self._leases.stats()}

    @property
    def exits(self) -> list[int]:
        """The number of layers before each segment's exit."""
        return self.manifest.exits

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
            length = self._context_length = min(segment.context_length for segment in loaded)
            self._position_bytes = self._bytes_of_a_position(loaded)
            self._held = HeldSequences(self._model.sequences, self.count, length, manifest.hidden)
            stack.pop_all()
        return SegmentBatcher(loaded, manifest.temperatures, vocabulary.end_tokens, self._inbox, waker.wake)

    def _bytes_of_a_position(self, loaded: Sequence[LlamaSegment]) -> int:
        """Of one position that is kept: its KV in all segments, and its states between them."""
        shapes = [kv_shape(segment.vocabulary.meta) for segment in loaded]
        numbers = sum(shape.numbers for shape in shapes if shape)
        states = 4 * self.manifest.hidden * max(1, self.count - 1)
        return states + int(numbers * ELEMENT_BYTES[self._model.kv_type])
