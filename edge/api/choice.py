"""One of a response's answers: the engine's or the pipeline's tokens become text, scored if asked. Knows no JSON."""

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import TypeVar

import msgspec

from common.cloud_client.verifier import CloudVerifier
from common.decoding.answer import Answer, Chunk
from common.decoding.pipeline import Pipeline
from common.decoding.policy import Plan, default_plan
from common.decoding.request import DecodingRequest
from common.errors import RequestError
from common.protocol.openai import CompletionRequest, GenerationRequest, SourcedToken
from common.types import Mode, Provenance, Sampling
from edge.api.context import Services
from edge.api.logprobs import ScoredToken
from edge.api.shared_prompt import SharedPrompt
from edge.engine.engine import Sequence as EdgeSequence
from edge.text.detokenizer import TextStream

T = TypeVar("T")


@dataclass(frozen=True)
class TextPiece:
    """Text of one choice as it becomes safe to show; the last piece has the finish reason.

    `tokens` are scored only if log probabilities were asked for; a piece's text may belong in part to earlier ones.
    """

    choice: int
    text: str
    tokens: list[ScoredToken] = field(default_factory=list)
    provenance: Provenance | None = None
    finish_reason: str | None = None
    sources: Sequence[SourcedToken] = ()
    """Where its tokens come from, if that was asked for."""


class Choice:
    """One answer to one prompt; `pieces` runs it to its end or to a stop string, once."""

    def __init__(self, index: int, services: Services, request: GenerationRequest, prompt: SharedPrompt, limit: int):
        self.index = index
        self.tokens = 0
        """Tokens of the answer so far, that of its end included."""
        self._services = services
        self._shared = prompt
        self._prompt = prompt.ids
        self._limit = limit
        self._reuse = services.config.edge.kv_cache.enabled and _given(
            request.use_kv_cache, services.config.inference.features.use_kv_cache
        )
        self._sampling = _nth(request.sampling(len(prompt.ids)), index)
        self._top = request.wanted_logprobs
        self._told = request.collaboration is not None and request.collaboration.tokens
        self._echo = isinstance(request, CompletionRequest) and bool(request.echo)
        self._text = TextStream(prompt.piece, request.stop_strings)
        self._begins = 0
        """Where the answer begins in the choice's text, in characters: after the prompt, if that is echoed."""
        self._unshown: list[ScoredToken] = []
        private = services.is_private(prompt.edge_ids, request.mode)
        self.answer = Answer(plan_for(request, services, private), list(prompt.ids), limit)

    async def pieces(self) -> AsyncGenerator[TextPiece, None]:
        async with self._running() as (chunks, echoed):
            if echoed is not None:
                yield echoed
            async for chunk in chunks:
                before = self.tokens
                text = self._read(chunk)
                sources = self._sources(chunk)[: self.tokens - before] if self._told else []
                if text or sources:
                    yield self._piece(text, chunk.provenance, sources=sources)
                if self._text.stopped:
                    break
        reason = "stop" if self._text.stopped else self.answer.finish_reason
        yield self._piece(self._text.flush(), finish_reason=reason)

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[tuple[AsyncGenerator[Chunk, None], TextPiece | None]]:
        """The answer as it comes, and the prompt before it, if that is echoed; leaving this ends what still runs."""
        services, plan = self._services, self.answer.plan
        async with AsyncExitStack() as stack:
            if plan.mode is Mode.SPLIT:
                leased = services.split_engine.answer(self._prompt, self._limit, self._sampling, plan)
                split = await stack.enter_async_context(leased)
                self.answer, chunks, echoed = split.answer, split.run(), None
            else:
                sequence = await stack.enter_async_context(
                    services.engine.sequence(self._shared.edge_ids, reuse=self._reuse)
                )
                echoed = await self._prompt_again(sequence) if self._echo else None
                chunks = self._chunks(sequence)
            try:
                async with aclosing(chunks):
                    yield chunks, echoed
            finally:
                services.ended(self.answer.report)

    def _chunks(self, sequence: EdgeSequence) -> AsyncGenerator[Chunk, None]:
        if not self.answer.plan.asks_cloud:
            return self._alone(sequence)
        shared, plan, services = self._shared, self.answer.plan, self._services
        cloud = CloudVerifier(services.clouds, use_kv_cache=self._reuse, vocabulary=shared.vocabulary)
        online = services.online if plan.gated and plan.gate == default_plan(services.config).gate else None
        drafter, verifier, known = shared.drafter(sequence), shared.verifier(cloud), services.estimates
        pipeline = Pipeline(
            DecodingRequest(self._prompt, self._limit, self._sampling, plan), drafter, verifier, known, online
        )
        self.answer = pipeline.answer
        return pipeline.run()

    async def _alone(self, sequence: EdgeSequence) -> AsyncGenerator[Chunk, None]:
        """The edge's own answer without rounds: the engine goes on by itself, and hands over what it has drawn."""
        answer = self.answer
        top = 0 if self._top is None else max(1, self._top)  # for the engine, 0 is none at all
        try:
            async with aclosing(sequence.generate(self._prompt, self._limit, self._sampling, top)) as drafts:
                async for draft in drafts:
                    answer.drew(draft)
                    answer.finished = draft.finished
                    yield answer.commit(draft.token_ids, Provenance.EDGE, draft.logprobs, draft.confidences)
        finally:
            answer.close()

    async def _prompt_again(self, sequence: EdgeSequence) -> TextPiece:
        """The prompt as text, with the log probability of each of its tokens."""
        text = TextStream(self._spell_prompt)
        begins, parts = [], []
        for token in self._prompt:
            begins.append(text.decoded)
            parts.append(text.push([token]))
        parts.append(text.flush())
        self._begins = text.shown
        if self._top is None:
            return TextPiece(self.index, "".join(parts))
        scores = await sequence.score(self._prompt, max(1, self._top))
        tokens = [ScoredToken(*token) for token in zip(self._prompt, begins, scores, strict=True)]
        return TextPiece(self.index, "".join(parts), tokens)

    def _spell_prompt(self, token: int) -> bytes:
        """Special tokens as they were written; the one that begins a text was not."""
        data = self._services.engine.piece(token, special=True)
        return b"" if data == self._services.engine.bos.encode() else data

    def _read(self, chunk: Chunk) -> str:
        """The text that the chunk makes safe to show; what follows a stop string is not read."""
        shown = []
        for position, token in enumerate(chunk.token_ids):
            if chunk.logprobs is not None:
                score = chunk.logprobs[position]
                self._unshown.append(ScoredToken(token, self._begins + self._text.decoded, score))
            shown.append(self._text.push([token]))
            self.tokens += 1
            if self._text.stopped:
                break
        return "".join(shown)

    def _sources(self, chunk: Chunk) -> list[SourcedToken]:
        sure: list[float | None] = [*chunk.confidences] or [None] * len(chunk.token_ids)
        texts = (self._shared.piece(token).decode("utf-8", "replace") for token in chunk.token_ids)
        return [SourcedToken(*row) for row in zip(chunk.token_ids, texts, repeat(chunk.provenance), sure)]

    def _piece(
        self,
        text: str,
        provenance: Provenance | None = None,
        finish_reason: str | None = None,
        sources: Sequence[SourcedToken] = (),
    ) -> TextPiece:
        tokens, self._unshown = self._unshown, []
        if self._text.stopped:
            tokens = [token for token in tokens if token.offset < self._begins + self._text.shown]
        return TextPiece(self.index, text, tokens, provenance, finish_reason, sources)


def plan_for(request: GenerationRequest, services: Services, private: bool) -> Plan:
    """How this server answers the request; `private`: nothing of the prompt may leave it."""
    default = default_plan(services.config)
    if request.mode is not Mode.SPLIT:
        return plan_of(request, default, private)
    use_exits = _given(request.use_confidence_check, default.use_confidence_check)
    standalone = private or request.privacy is not None
    return services.split_engine.plan(request.confidence_threshold, use_exits, standalone)


def plan_of(request: GenerationRequest, default: Plan, private: bool = False) -> Plan:
    """The server's plan with what this request says otherwise; RequestError where the edge alone could honour it.

    A `private` prompt, or a request that says so, is answered by the edge alone whatever else is asked.
    """
    gate = default.gate
    if request.confidence_threshold is not None:
        gate = dataclasses.replace(gate, threshold=request.confidence_threshold)
    if request.product_threshold is not None:
        gate = dataclasses.replace(gate, product_threshold=request.product_threshold)
    plan = dataclasses.replace(
        default,
        mode=Mode.EDGE_ONLY if private or request.privacy else request.mode,
        gate=gate,
        use_confidence_check=_given(request.use_confidence_check, default.use_confidence_check),
        use_draft_verify=_given(request.use_draft_verify, default.use_draft_verify),
        max_draft_tokens=_given(request.max_draft_tokens, default.max_draft_tokens),
        objective=_given(request.objective, default.objective),
        way=_given(request.way, default.way),
        draft_ahead=_given(request.draft_ahead, default.draft_ahead),
    )
    name = request.edge_only_field
    if name and plan.asks_cloud:
        raise RequestError(f'{name} is supported where the edge answers alone: ask in mode "edge_only"', param=name)
    return plan


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _nth(sampling: Sampling, index: int) -> Sampling:
    """Each choice draws its own tokens, reproducibly."""
    if sampling.seed is None or index == 0:
        return sampling
    return msgspec.structs.replace(sampling, seed=(sampling.seed + index) % 2**63)
