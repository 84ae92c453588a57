"""The edge's half of a split model, ready to answer: its segments, its exits, its way to the clouds. Knows no HTTP."""

import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from common.cloud_client.pool import CloudPool
from common.config_schema import Config
from common.decoding.estimates import Mean
from common.decoding.policy import Plan, default_plan
from common.errors import ConfigError
from common.protocol.openai import Message
from common.protocol.split_manifest import read_manifest
from common.types import GREEDY, InferenceResult, Mode, Sampling
from edge.split.answer import SplitAnswer
from edge.split.cloud_tail import CloudTail, SplitClouds
from edge.split.early_exit import LatencyAwareEarlyExit, never, thresholds_of
from edge.split.segments import Segments
from edge.text.chat_template import ChatTemplate
from edge.text.detokenizer import TextStream

DEFAULT_TOKENS = 100
"""Tokens of an answer for which nobody says how many."""


class EdgeInferenceEngine:
    """Answers with the model that `edge.split.manifest` names: `async with`; `clouds` are its own unless given.

    Making it raises ConfigError where manifest or thresholds do not fit; entering it, for files that are not the
    manifest's; StartError for those that cannot be loaded.
    """

    def __init__(
        self, config: Config, clouds: CloudPool | None = None, split_clouds: SplitClouds | None = None
    ) -> None:
        split = config.edge.split
        if not split.manifest:
            raise ConfigError("edge.split.manifest: name what `python -m models.partition` wrote, for mode split")
        path = Path(split.manifest)
        self.manifest = read_manifest(path)
        self.thresholds = thresholds_of(split.thresholds, self.manifest.exits, "edge.split.thresholds")
        self._config = config
        self._own_clouds = None if clouds or split_clouds else CloudPool(config.communication)
        self._split_clouds = split_clouds or SplitClouds(clouds or self._own_clouds or CloudPool())
        model = config.edge.model
        self.segments = Segments(
            self.manifest,
            path if path.is_dir() else path.parent,
            context_length=model.context_length,
            gpu_layers=model.gpu_layers,
            threads=model.threads,
            sequences=model.sequences,
            kv_type=model.kv_type,
            flash_attention=None if model.flash_attention == "auto" else model.flash_attention,
            limits=config.edge.limits,
        )
        self.template: ChatTemplate
        self._deeper = [Mean() for _ in self.manifest.exits]
        self._closing = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self._own_clouds:
                await stack.enter_async_context(self._own_clouds)
            await stack.enter_async_context(self._split_clouds)
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
        """How an answer comes about that wants another `threshold` for all exits, or none of them taken."""
        exits = self.thresholds if threshold is None else (threshold,) * len(self.thresholds)
        return dataclasses.replace(
            default_plan(self._config),
            mode=Mode.SPLIT,
            exits=exits if use_exits else never(len(exits)),
            standalone=standalone,
        )

    @asynccontextmanager
    async def answer(
        self, prompt: Sequence[int], max_tokens: int, sampling: Sampling, plan: Plan
    ) -> AsyncIterator[SplitAnswer]:
        """An answer to `prompt`, as soon as there is a free sequence for it; leaving frees that."""
        async with self.segments.sequence(len(prompt), sampling) as sequence:
            exits = LatencyAwareEarlyExit(plan.exits, self._config.edge.split.latency_budget_ms)
            tail = None if plan.standalone else self._tail(prompt)
            yield SplitAnswer(sequence, prompt, max_tokens, sampling, plan, exits, tail, self._deeper)

    async def generate_standalone(
        self, prompt: str, max_tokens: int = DEFAULT_TOKENS, sampling: Sampling = GREEDY
    ) -> InferenceResult:
        """The answer of the edge alone: the first exit that is sure gives a token, else the last one does."""
        return await self._generate(prompt, max_tokens, sampling, self.plan(standalone=True))

    async def generate_collaborative(
        self, prompt: str, max_tokens: int = DEFAULT_TOKENS, sampling: Sampling = GREEDY
    ) -> InferenceResult:
        """The same, where a cloud that has the rest of the model gives the tokens that no exit is sure of."""
        return await self._generate(prompt, max_tokens, sampling, self.plan())

    async def _generate(self, prompt: str, max_tokens: int, sampling: Sampling, plan: Plan) -> InferenceResult:
        began, segments = time.perf_counter(), self.segments
        if segments.chat_template:
            prompt = await self.template.render([Message(role="user", content=prompt)])
        ids = segments.tokenize(prompt, add_special=not segments.chat_template, parse_special=True)
        text, parts = TextStream(segments.piece), list[str]()
        limit = min(max_tokens, segments.context_length - len(ids))
        async with self.answer(ids, limit, sampling, plan) as split, aclosing(split.run()) as chunks:
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

    def _tail(self, prompt: Sequence[int]) -> CloudTail:
        split, breaker = self._config.edge.split, self._config.communication.breaker
        return CloudTail(
            self._split_clouds,
            prompt,
            self.manifest.fingerprint,
            split.transfer,
            deadline_seconds=split.deadline_ms / 1e3,
            pause_seconds=breaker.probe_seconds,
            async_upload=split.async_upload,
        )
