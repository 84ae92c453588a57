"""One of a response's answers: the engine's or the pipeline's tokens become text, scored if asked. Knows no JSON."""

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from common.api import CompletionRequest, GenerationRequest
from common.errors import RequestError
from common.pipeline import Answer, Chunk, Pipeline
from common.policy import Plan
from common.remote import CloudVerifier
from common.types import Provenance, Sampling
from edge.engine import Sequence as EdgeSequence
from edge.logprobs import ScoredToken
from edge.services import Services
from edge.text_stream import TextStream

T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """Text of one choice as it becomes safe to show; the last piece has the finish reason.

    `tokens` are scored only if log probabilities were asked for; a piece's text may belong in part to earlier ones.
    """

    choice: int
    text: str
    tokens: list[ScoredToken] = field(default_factory=list)
    provenance: Provenance | None = None
    finish_reason: str | None = None


class Choice:
    """One answer to one prompt; `pieces` runs it to its end or to a stop string, once."""

    def __init__(self, index: int, services: Services, request: GenerationRequest, prompt: list[int], limit: int):
        self.index = index
        self.tokens = 0
        """Tokens of the answer so far, that of its end included."""
        self._services = services
        self._prompt = prompt
        self._limit = limit
        self._reuse = services.config.edge.kv_cache.enabled and _given(
            request.use_kv_cache, services.config.inference.features.use_kv_cache
        )
        self._sampling = _nth(request.sampling(len(prompt)), index)
        self._top = request.wanted_logprobs
        self._echo = isinstance(request, CompletionRequest) and bool(request.echo)
        self._text = TextStream(services.engine.piece, request.stop_strings)
        self._begins = 0
        """Where the answer begins in the choice's text, in characters: after the prompt, if that is echoed."""
        self._unshown: list[ScoredToken] = []
        self.answer = Answer(plan_of(request, services.config.plan), list(prompt), limit)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        async with self._services.engine.sequence(self._prompt, reuse=self._reuse) as sequence:
            if self._echo:
                yield await self._prompt_again(sequence)
            async with aclosing(self._chunks(sequence)) as chunks:
                async for chunk in chunks:
                    text = self._read(chunk)
                    if text:
                        yield self._piece(text, chunk.provenance)
                    if self._text.stopped:
                        break
        reason = "stop" if self._text.stopped else self.answer.finish_reason
        yield self._piece(self._text.flush(), finish_reason=reason)

    def _chunks(self, sequence: EdgeSequence) -> AsyncGenerator[Chunk, None]:
        if not self.answer.plan.asks_cloud:
            return self._alone(sequence)
        verifier = CloudVerifier(self._services.cloud, use_kv_cache=self._reuse)
        plan, default = self.answer.plan, self._services.config.plan
        online = self._services.online if plan.gated and plan.gate == default.gate else None
        pipeline = Pipeline(self._prompt, self._limit, self._sampling, plan, sequence, verifier, online)
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
                    yield answer.commit(draft.token_ids, Provenance.EDGE, draft.logprobs)
        finally:
            answer.close()

    async def _prompt_again(self, sequence: EdgeSequence) -> Piece:
        """The prompt as text, with the log probability of each of its tokens."""
        text = TextStream(self._spell_prompt)
        begins, parts = [], []
        for token in self._prompt:
            begins.append(text.decoded)
            parts.append(text.push([token]))
        parts.append(text.flush())
        self._begins = text.shown
        if self._top is None:
            return Piece(self.index, "".join(parts))
        scores = await sequence.score(self._prompt, max(1, self._top))
        tokens = [ScoredToken(*token) for token in zip(self._prompt, begins, scores, strict=True)]
        return Piece(self.index, "".join(parts), tokens)

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

    def _piece(self, text: str, provenance: Provenance | None = None, finish_reason: str | None = None) -> Piece:
        tokens, self._unshown = self._unshown, []
        if self._text.stopped:
            tokens = [token for token in tokens if token.offset < self._begins + self._text.shown]
        return Piece(self.index, text, tokens, provenance, finish_reason)


def plan_of(request: GenerationRequest, default: Plan) -> Plan:
    """The server's plan with what this request says otherwise; RequestError where the edge alone could honour it."""
    gate = default.gate
    if request.confidence_threshold is not None:
        gate = dataclasses.replace(gate, threshold=request.confidence_threshold)
    if request.product_threshold is not None:
        gate = dataclasses.replace(gate, product_threshold=request.product_threshold)
    plan = dataclasses.replace(
        default,
        mode=request.mode,
        gate=gate,
        use_confidence_check=_given(request.use_confidence_check, default.use_confidence_check),
        use_draft_verify=_given(request.use_draft_verify, default.use_draft_verify),
        max_draft_tokens=_given(request.max_draft_tokens, default.max_draft_tokens),
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
