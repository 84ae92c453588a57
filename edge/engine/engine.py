"""The edge's language model: lends sequences of one llama.cpp context to requests and runs their jobs in one thread."""

from collections import abc
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Self

from common.config_edge import EdgeModelConfig, LimitsConfig
from common.errors import EngineError
from common.fair_queue import WeightOf, equal_weights
from common.grammar.compiler import GrammarCompiler
from common.grammar.spec import GrammarSpec
from common.hardware import Setting
from common.http.request_context import current_tenant
from common.protocol.prefix_hash import common_prefix
from edge.confidence import ConfidenceCalculator
from edge.engine.edge_model import EdgeModel
from edge.engine.jobs import DecodeJob, Lease
from edge.engine.lazy_sequence import LazySequence
from edge.engine.loop_waker import LoopWaker
from edge.engine.scheduler import BatchScheduler, Confidence, Release
from edge.engine.sequence import EdgeSequence
from edge.engine.sequence_pool import SequencePool
from edge.engine.worker import EngineThread
from edge.kv.prefix_store import LiveSequences, PrefixStore
from edge.llama.grammar import tokenizer_of
from edge.llama.model import Llama
from edge.llama.vocabulary import LlamaVocabulary

__all__ = ["EdgeEngine", "EdgeSequence"]


class EdgeEngine(EdgeModel):
    """Drafts tokens for up to `model.sequences` requests at a time.

    Used in one event loop, from `start` to `close`; llama.cpp runs in the thread "edge-engine". `model.path` must be
    a GGUF file. `confidence` defaults to the strategy max_prob; `store` keeps KV for later requests, by default only
    what the live sequences hold. `weight`: of each tenant, where requests wait.
    """

    def __init__(
        self,
        model: EdgeModelConfig,
        *,
        confidence: Confidence | None = None,
        store: PrefixStore | None = None,
        limits: LimitsConfig | None = None,
        weight: WeightOf = equal_weights,
    ) -> None:
        self.path = model.path
        self._confidence = confidence or ConfidenceCalculator().of_batch
        self._store = store or LiveSequences()
        self._limits = limits or LimitsConfig()
        self._llama: Llama | None = None
        self._inbox: SimpleQueue[DecodeJob | Release | None] = SimpleQueue()

        def load(waker: LoopWaker) -> BatchScheduler:
            self._llama = Llama(model)
            return BatchScheduler(self._llama, self._store, self._confidence, self._inbox, waker.wake)

        self._thread = EngineThread("edge-engine", self._inbox, load)
        self.grammars = GrammarCompiler(lambda: tokenizer_of(self.vocabulary))
        """What answers can be restricted to."""
        self._pool = SequencePool(model.sequences, self._limits, weight=weight)

    async def start(self) -> None:
        """Loads the model in the engine's thread, once; raises StartError, and then nothing is left running."""
        await self._thread.start()
        try:
            await self.grammars.prepare()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Fails the jobs that still wait with EngineError, frees the model and ends the thread."""
        await self.grammars.close()
        await self._thread.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    @asynccontextmanager
    async def sequence(
        self, token_ids: abc.Sequence[int] = (), reuse: bool = True, admitted: bool = False
    ) -> AsyncIterator[EdgeSequence]:
        """Lends one sequence; waits for a free one, or raises OverloadedError if the queue is full (unless `admitted`),
        EngineError if the engine is stuck.

        Prefers the sequence that holds most of the prefix of `token_ids`, unless more of what it holds would be lost
        than reused. Without `reuse` no KV is kept from one draft to the next (F3 off). KV is reused between requests of
        one tenant only: that of the request being served (`current_tenant`).
        """
        llama, tenant = self._require_model(), current_tenant.get()
        if not self.alive:
            raise EngineError("the edge model is stuck in a step")
        wanted = list(token_ids) if reuse else []
        lease = self._pool.lend(len(token_ids), lambda free: _reusable(llama, free, wanted, tenant), admitted)
        async with lease as lent:
            try:
                yield EdgeSequence(self, Lease(lent, reuse, tenant))
            finally:
                self._inbox.put(Release(lent, reuse))

    async def check_grammar(self, spec: GrammarSpec) -> None:
        await self.grammars.compile(spec)

    def drafter(self, reuse: bool, admitted: bool, top_logprobs: int) -> LazySequence:
        return LazySequence(self, reuse, admitted, top_logprobs)

    def admit(self, requests: int, tokens: int) -> AbstractContextManager[None]:
        return self._pool.admit(requests, tokens)

    async def until_idle(self) -> None:
        await self._pool.until_idle()

    @property
    def alive(self) -> bool:
        """Whether the model is loaded and its thread is not stuck in a step."""
        return self._thread.alive

    def stats(self, tenant: str | None = None) -> dict[str, int]:
        """Counters since the start, of one tenant or (None) of all, and then also the load: sequences lent, requests.

        The load is left out for a tenant: it shows the length of others' prompts.
        """
        self._require_model()
        counters = self._thread.scheduler.counters.of(tenant) if self._thread.scheduler else {}
        kept = {f"kv_{name}": value for name, value in self._store.stats(tenant).items()}
        return {**counters, **(self._pool.stats() if tenant is None else {}), **kept}

    def settings(self) -> dict[str, Setting]:
        """The settings that fit the machine, by name, and why."""
        return self._require_model().settings()

    @property
    def vocabulary(self) -> LlamaVocabulary:
        return self._require_model().vocabulary

    @property
    def context_length(self) -> int:
        limit, length = self._limits.max_tokens_request, self._require_model().context_length
        return min(length, limit) if limit else length

    @property
    def model_name(self) -> str:
        """The name in the file's header, else the file's own name."""
        return self.vocabulary.meta("general.name") or Path(self.path).stem

    def submit(self, job: DecodeJob) -> None:
        """Hands a job to the engine's thread; raises EngineError if the engine is not running."""
        self._require_model()
        self._inbox.put(job)

    def cancel(self, job: DecodeJob) -> None:
        """Drops the job at the end of the current step, and ends the step now if no other job needs it."""
        job.cancelled = True
        if self._thread.scheduler is not None:
            self._thread.scheduler.abort_unwanted_step()

    def works_on(self, job: DecodeJob) -> bool:
        """Whether the engine computes, and the job has a part in it, or will have."""
        return self._thread.works_on(job)

    def _require_model(self) -> Llama:
        if self._llama is None or self._thread.closing:
            raise EngineError("the edge model is not running")
        return self._llama


def _reusable(llama: Llama, sequence: int, wanted: list[int], tenant: str) -> int:
    """How many tokens of `sequence` a request for `wanted` reuses; 0 if it would lose more of them than it reuses."""
    if llama.owners[sequence] != tenant:
        return 0
    held = llama.held[sequence]
    common = common_prefix(held, wanted)
    if llama.takes_checkpoints:
        common = llama.reusable(sequence, common)
    return common if 2 * common >= len(held) else 0
