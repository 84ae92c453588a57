"""The edge's part of a split model: its segments, exits and connections to the clouds; starts answers and ends them."""

import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from common.cloud_client.pool import CloudPool
from common.config_schema import Config
from common.decoding.fading import Mean
from common.decoding.policy import Plan, default_plan
from common.decoding.request import DecodingRequest
from common.errors import ConfigError, ContextLengthError
from common.http.request_context import current_tenant
from common.protocol.openai import Message
from common.protocol.split_manifest import read_manifest
from common.types import GREEDY, InferenceResult, Mode, Sampling
from edge.split.answer import SplitAnswer
from edge.split.cloud_tail import CloudTail, SplitClouds
from edge.split.early_exit import LatencyAwareEarlyExit, disabled_exits, thresholds_of
from edge.split.kept_sessions import KeptSessions
from edge.split.segments import Segments, SegmentSequence
from edge.tenants.limits import weights_of
from edge.text.chat_template import ChatTemplate
from edge.text.detokenizer import TextStream

DEFAULT_TOKENS = 100
"""The token limit of an answer when the caller gives none."""


class EdgeInferenceEngine:
    """Answers with the model that `edge.split.manifest` names: `async with`; it owns its clouds unless they are given.

    The constructor raises ConfigError if manifest or thresholds do not fit. Entering raises ConfigError for files that
    do not match the manifest, StartError for files that cannot be loaded.
    """

    tail_class = CloudTail
    """An answer's access to the cloud's layers; experiments take another one."""

    def __init__(
        self, config: Config, clouds: CloudPool | None = None, split_clouds: SplitClouds | None = None
    ) -> None:
        split = config.edge.split
        if not split.manifest:
            raise ConfigError("edge.split.manifest: set it, for mode split, to what `python -m models.partition` wrote")
        path = Path(split.manifest)
        self.manifest = read_manifest(path)
        self.thresholds = thresholds_of(split.thresholds, self.manifest.exits, "edge.split.thresholds")
        self._config = config
        self._own_clouds = None if clouds or split_clouds else CloudPool(config.communication)
        self._split_clouds = split_clouds or SplitClouds(clouds or self._own_clouds or CloudPool())
        folder = path if path.is_dir() else path.parent
        weight = weights_of(config.edge.quotas)
        self._kept = KeptSessions(config.edge.model.sequences, config.edge.kv_cache.ram_bytes)
        self.segments = Segments(
            self.manifest,
            folder,
            config.edge.model,
            config.edge.limits,
            weight,
            config.edge.kv_cache,
            beside=lambda: self._kept.bytes,
        )
        self.template: ChatTemplate
        self._deeper_ms = [Mean() for _ in self.manifest.exits]
        self._closing = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self._own_clouds:
                await stack.enter_async_context(self._own_clouds)
            await stack.enter_async_context(self._split_clouds)
            stack.callback(self._kept.close)
            segments = await stack.enter_async_context(self.segments)
            template = ChatTemplate(segments.chat_template or "", bos=segments.bos, eos=segments.eos)
            self.template = await stack.enter_async_context(template)
            self._closing = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._closing.aclose()

    def plan(self, threshold: float | None = None, use_exits: bool = True, standalone: bool = False) -> Plan:
        """The plan of one answer: `threshold` replaces that of every exit; without `use_exits` no exit is taken."""
        exits = self.thresholds if threshold is None else (threshold,) * len(self.thresholds)
        return dataclasses.replace(
            default_plan(self._config),
            mode=Mode.SPLIT,
            exits=exits if use_exits else disabled_exits(len(exits)),
            standalone=standalone,
        )

    async def prompt_ids(self, prompt: str) -> list[int]:
        """The prompt as one user turn of the chat template, or as it is if the model has none.

        Raises ContextLengthError if it leaves no room for an answer.
        """
        segments, template = self.segments, self.segments.chat_template
        text = await self.template.render([Message(role="user", content=prompt)]) if template else prompt
        ids = segments.tokenize(text, add_special=not template, parse_special=True)
        if len(ids) >= segments.context_length:
            length = segments.context_length
            raise ContextLengthError(f"{len(ids)} prompt tokens leave no room in a context of {length}")
        return ids

    @asynccontextmanager
    async def answer(
        self, request: DecodingRequest, reuse: bool = False, admitted: bool = False, top_logprobs: int = 0
    ) -> AsyncIterator[SplitAnswer]:
        """The answer to `request`, as soon as a sequence is free; leaving frees the sequence.

        `reuse`: it begins with what edge and cloud have computed of its prompt for earlier answers to the same tenant,
        and leaves what they compute to later ones. `top_logprobs`: how many alternatives each token names; 0: none, and
        no log probabilities.
        """
        prompt = request.prompt if reuse else None
        lease = self.segments.sequence(len(request.prompt), request.sampling, admitted, prompt, top_logprobs)
        async with lease as sequence, AsyncExitStack() as stack:
            exits = LatencyAwareEarlyExit(request.plan.exits, self._config.edge.split.latency_budget_ms)
            tail = None
            if not request.plan.standalone:
                tail = await stack.enter_async_context(self.tail(request.prompt, sequence, reuse))
            yield SplitAnswer(sequence, request, exits, tail, self._deeper_ms, top_logprobs)

    async def generate_standalone(
        self, prompt: str, max_tokens: int = DEFAULT_TOKENS, sampling: Sampling = GREEDY
    ) -> InferenceResult:
        """The answer of the edge alone: the first confident exit gives each token, or else the last exit does."""
        return await self._generate(prompt, max_tokens, sampling, self.plan(standalone=True))

    async def generate_collaborative(
        self, prompt: str, max_tokens: int = DEFAULT_TOKENS, sampling: Sampling = GREEDY
    ) -> InferenceResult:
        """The same, but a cloud with the rest of the model gives the tokens that no exit is confident of."""
        return await self._generate(prompt, max_tokens, sampling, self.plan())

    async def _generate(self, prompt: str, max_tokens: int, sampling: Sampling, plan: Plan) -> InferenceResult:
        began, segments = time.perf_counter(), self.segments
        ids = await self.prompt_ids(prompt)
        text, parts = TextStream(segments.piece), list[str]()
        limit = min(max_tokens, segments.context_length - len(ids))
        request = DecodingRequest(ids, limit, sampling, plan)
        async with self.answer(request) as split, aclosing(split.run()) as chunks:
            async for chunk in chunks:
                parts.append(text.push(chunk.token_ids))
        answer = split.answer
        return InferenceResult(
            text="".join([*parts, text.flush()]),
            finish_reason=answer.finish_reason,
            prompt_tokens=len(ids),
            completion_tokens=len(answer.committed) - len(ids),
            total_latency_ms=(time.perf_counter() - began) * 1e3,
            collaboration=answer.report,
        )

    @asynccontextmanager
    async def tail(self, prompt: Sequence[int], sequence: SegmentSequence, reuse: bool) -> AsyncIterator[CloudTail]:
        """Access to the cloud's layers for one answer; with `reuse` its session is taken from, and left to, others."""
        split, pause_seconds = self._config.edge.split, self._config.communication.breaker.probe_seconds
        tenant = current_tenant.get()
        kept = self._kept.take(prompt, tenant) if reuse else None
        fingerprint = self.manifest.fingerprint
        async with self.tail_class(self._split_clouds, prompt, fingerprint, split, pause_seconds, kept) as tail:
            try:
                yield tail
            finally:
                if reuse and (left := tail.take_out(sequence.computed, tenant)):
                    self._kept.give(left)
