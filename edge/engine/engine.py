"""The edge's language model and the one thread that runs it. Knows nothing of HTTP, the cloud, or a draft's fate."""

from collections import abc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Self

from common.config_schema import LimitsConfig
from common.errors import EngineError
from common.protocol.prefix_hash import common_prefix
from edge.confidence import ConfidenceCalculator
from edge.engine.jobs import Job
from edge.engine.loop_waker import Bell
from edge.engine.scheduler import Batcher, Confidence, Release
from edge.engine.sequence import Sequence
from edge.engine.sequence_pool import Leases
from edge.engine.text_model import TextModel
from edge.engine.worker import EngineThread, cores_for_compute
from edge.kv.live_sequences import LiveSequences
from edge.kv.prefix_store import PrefixStore
from edge.llama.model import Llama
from edge.llama.vocabulary import LlamaVocabulary

__all__ = ["EdgeEngine", "Sequence"]


class EdgeEngine(TextModel):
    """Drafts tokens for up to `sequences` owners at a time; used from one event loop, `start` to `close`.

    `context_length` tokens fit in each sequence (cut to what the model was trained for); `gpu_layers` -1 means all;
    `threads` 0 leaves one core to the event loop; `kv_type` is one of f16, f32, q8_0; `flash_attention` None means
    where it costs no exactness; `kv_unified` lets sequences share the KV of a common beginning instead of copying it,
    at the price of slower steps. `store` finds what was decoded before; None: among the live sequences only.
    """

    def __init__(
        self,
        path: str,
        context_length: int = 2048,
        gpu_layers: int = 0,
        threads: int = 0,
        sequences: int = 4,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
        kv_unified: bool = False,
        *,
        confidence: Confidence | None = None,
        store: PrefixStore | None = None,
        limits: LimitsConfig | None = None,
    ) -> None:
        self.path = path
        self._confidence = confidence or ConfidenceCalculator().of_batch
        self._store = store or LiveSequences()
        self._limits = limits or LimitsConfig()
        self._llama: Llama | None = None
        self._inbox: SimpleQueue[Job | Release | None] = SimpleQueue()
        threads = threads or cores_for_compute()

        def load(bell: Bell) -> Batcher:
            self._llama = Llama(
                path, context_length, gpu_layers, threads, sequences, kv_type, flash_attention, kv_unified
            )
            return Batcher(self._llama, self._store, self._confidence, self._inbox, bell.ring)

        self._thread = EngineThread("edge-engine", self._inbox, load)
        self._leases = Leases(sequences, self._limits)

    async def start(self) -> None:
        """Loads the model in the engine's thread, once; raises StartError, and then nothing is left running."""
        await self._thread.start()

    async def close(self) -> None:
        """Fails what still waits with EngineError, frees the model and ends the thread."""
        await self._thread.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    @asynccontextmanager
    async def sequence(self, token_ids: abc.Sequence[int] = (), reuse: bool = True) -> AsyncIterator[Sequence]:
        """Lends one sequence; waits for a free one, or raises OverloadedError if too many wait already.

        Preferred is the one that holds most of the beginning of `token_ids`, unless it would lose more than it could
        keep. Without `reuse` nothing is kept from one draft to the next (F3 off).
        """
        llama = self._model()
        known = list(token_ids) if reuse else []
        async with self._leases.lend(len(token_ids), lambda free: _worth(llama.held[free], known)) as lent:
            try:
                yield Sequence(self, lent, reuse)
            finally:
                self._inbox.put(Release(lent, reuse))

    @property
    def alive(self) -> bool:
        """Whether the model is loaded and its thread is not stuck in a step."""
        return self._thread.alive

    def stats(self) -> dict[str, int]:
        """Counts since the start, and who has a sequence or waits for one now."""
        self._model()
        counters = self._thread.engine.counters if self._thread.engine else {}
        kept = {f"kv_{name}": value for name, value in self._store.stats().items()}
        return {**counters, **self._leases.stats(), **kept}

    @property
    def vocabulary(self) -> LlamaVocabulary:
        return self._model().vocabulary

    @property
    def context_length(self) -> int:
        most = self._limits.max_tokens_request
        return min(self._model().context_length, most) if most else self._model().context_length

    @property
    def model_name(self) -> str:
        """What the file calls its model, else the file's own name."""
        return self.vocabulary.meta("general.name") or Path(self.path).stem

    def submit(self, job: Job) -> None:
        """Hands a job to the engine's thread."""
        self._model()
        self._inbox.put(job)

    def cancel(self, job: Job) -> None:
        """Nobody wants the job any more: it leaves at the end of the step under way, which ends now if it can."""
        job.cancelled = True
        if self._thread.engine is not None:
            self._thread.engine.cancelled()

    def _model(self) -> Llama:
        if self._llama is None or self._thread.closing:
            raise EngineError("the edge model is not running")
        return self._llama


def _worth(held: list[int], wanted: list[int]) -> int:
    """How many of the `held` tokens taking over their sequence would save; 0 if more of them would be lost."""
    common = common_prefix(held, wanted)
    return common if 2 * common >= len(held) else 0
