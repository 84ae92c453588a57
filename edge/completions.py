"""One /v1 answer of the edge: pipelines run, chunks become text, text becomes OpenAI's JSON or SSE. Knows no routes."""

import asyncio
import dataclasses
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from common.api import ChatRequest, GenerationRequest, Usage, dump
from common.config import Config
from common.connection import HTTPClient
from common.errors import ContextLengthError, RequestError
from common.pipeline import Pipeline
from common.policy import Plan
from common.remote import CloudVerifier
from common.types import Collaboration, Provenance, Sampling
from edge.chat_template import ChatTemplate
from edge.engine import EdgeEngine
from edge.text_stream import TextStream

T = TypeVar("T")


@dataclass(frozen=True)
class Services:
    """What every request of one edge server shares; the server owns and closes them."""

    config: Config
    engine: EdgeEngine
    template: ChatTemplate
    cloud: HTTPClient


@dataclass(frozen=True)
class Piece:
    """Text of one choice as it becomes safe to show; the last piece has the finish reason."""

    choice: int
    text: str
    provenance: Provenance | None = None
    finish_reason: str | None = None


class Choice:
    """One of a response's `n` answers; `pieces` runs its pipeline to the end or to a stop string."""

    def __init__(
        self, index: int, services: Services, request: GenerationRequest, prompt: list[int], limit: int
    ) -> None:
        self.index = index
        self._engine = services.engine
        self._prompt = prompt
        self._plan = plan_of(request, services.config.plan)
        self._reuse = services.config.edge.kv_cache.enabled and _given(
            request.use_kv_cache, services.config.inference.features.use_kv_cache
        )
        self._sampling = _nth(request.sampling, index)
        self._limit = limit
        self._text = TextStream(services.engine.piece, request.stop_strings)
        self._verifier = CloudVerifier(services.cloud, use_kv_cache=self._reuse)
        self.report = Collaboration()
        self.tokens = 0

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        async with self._engine.sequence(self._prompt, reuse=self._reuse) as sequence:
            pipeline = Pipeline(self._prompt, self._limit, self._sampling, self._plan, sequence, self._verifier)
            self.report = pipeline.answer.report
            async with aclosing(pipeline.run()) as chunks:
                async for chunk in chunks:
                    self.tokens += len(chunk.token_ids)
                    text = self._text.push(chunk.token_ids)
                    if text:
                        yield Piece(self.index, text, chunk.provenance)
                    if self._text.stopped:
                        break
        reason = "stop" if self._text.stopped else pipeline.answer.finish_reason
        yield Piece(self.index, self._text.flush(), finish_reason=reason)


class Completion:
    """One response to a chat or text completion request: all its choices, and how they look on the wire."""

    def __init__(
        self, services: Services, request: GenerationRequest, prompt: list[int], max_tokens: int | None
    ) -> None:
        room = services.engine.context_length - len(prompt)
        if not prompt:
            raise RequestError("the prompt is empty", param="prompt")
        if room < 1:
            raise ContextLengthError(
                f"{len(prompt)} prompt tokens leave no room in a context of {services.engine.context_length}",
                param="prompt",
            )
        limit = room if max_tokens is None else min(max_tokens, room)
        self._chat = isinstance(request, ChatRequest)
        self._prompt_tokens = len(prompt)
        self._options = request.stream_options
        self.choices = [Choice(i, services, request, prompt, limit) for i in range(request.n)]
        self._head = {
            "id": ("chatcmpl-" if self._chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": services.engine.model_name,
        }

    async def whole(self) -> dict[str, Any]:
        """The response object, when all choices are finished."""
        texts = [""] * len(self.choices)
        reasons: list[str | None] = [None] * len(self.choices)
        async for piece in self._pieces():
            texts[piece.choice] += piece.text
            reasons[piece.choice] = piece.finish_reason
        choices = [
            {"index": i, **self._content("message", text), "finish_reason": reason}
            for i, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, "usage": dump(self._usage()), **self._collaboration()}

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The stream's chunks; the last one carries the collaboration object, and the usage if it was asked for."""
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        include_usage = self._options is not None and self._options.include_usage
        unfinished = len(self.choices)
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                choice = {
                    "index": piece.choice,
                    **self._content("delta", piece.text),
                    "finish_reason": piece.finish_reason,
                }
                if piece.provenance:
                    choice["provenance"] = piece.provenance
                unfinished -= piece.finish_reason is not None
                last = {} if unfinished or include_usage else self._collaboration()
                yield {**self._head, "object": kind, "choices": [choice], **last}
        if include_usage:
            usage = dump(self._usage())
            yield {**self._head, "object": kind, "choices": [], "usage": usage, **self._collaboration()}

    async def _pieces(self) -> AsyncGenerator[Piece, None]:
        """The pieces of all choices as they come; leaving this early cancels what still runs."""
        queue: asyncio.Queue[Piece] = asyncio.Queue()

        async def run(choice: Choice) -> None:
            async with aclosing(choice.pieces()) as pieces:
                async for piece in pieces:
                    queue.put_nowait(piece)

        running = {asyncio.create_task(run(choice)) for choice in self.choices}
        getting: asyncio.Task[Piece] | None = None
        try:
            while running or not queue.empty():
                getting = getting or asyncio.create_task(queue.get())
                done, _ = await asyncio.wait({getting, *running}, return_when=asyncio.FIRST_COMPLETED)
                if getting in done:
                    yield getting.result()
                    getting = None
                for task in done & running:
                    running.discard(task)
                    task.result()
        finally:
            left = [task for task in (getting, *running) if task is not None]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def _content(self, key: str, text: str) -> dict[str, Any]:
        return {key: {"role": "assistant", "content": text}} if self._chat else {"text": text}

    def _usage(self) -> Usage:
        completed = sum(c.tokens for c in self.choices)
        return Usage(self._prompt_tokens, completed, self._prompt_tokens + completed)

    def _collaboration(self) -> dict[str, Any]:
        return {"collaboration": dump(combined([c.report for c in self.choices]))}


def plan_of(request: GenerationRequest, default: Plan) -> Plan:
    """The server's plan with what this request says otherwise."""
    gate = default.gate
    if request.confidence_threshold is not None:
        gate = dataclasses.replace(gate, threshold=request.confidence_threshold)
    return dataclasses.replace(
        default,
        mode=request.mode,
        gate=gate,
        use_confidence_check=_given(request.use_confidence_check, default.use_confidence_check),
        use_draft_verify=_given(request.use_draft_verify, default.use_draft_verify),
        max_draft_tokens=_given(request.max_draft_tokens, default.max_draft_tokens),
    )


def combined(reports: Sequence[Collaboration]) -> Collaboration:
    """The report of several choices together: counts and times added, the scores as means."""
    if len(reports) == 1:
        return reports[0]
    scores = [r.confidence_score for r in reports if r.confidence_score is not None]
    drafted, accepted = sum(r.drafted for r in reports), sum(r.accepted for r in reports)
    return Collaboration(
        mode=reports[0].mode,
        lossless=all(r.lossless for r in reports),
        rounds=sum(r.rounds for r in reports),
        drafted=drafted,
        accepted=accepted,
        tokens={str(p): sum(r.tokens[p] for r in reports) for p in Provenance},
        confidence_score=sum(scores) / len(scores) if scores else None,
        edge_latency_ms=sum(r.edge_latency_ms for r in reports),
        cloud_latency_ms=sum(r.cloud_latency_ms for r in reports),
        cloud_calls=sum(r.cloud_calls for r in reports),
        bytes_up=sum(r.bytes_up for r in reports),
        bytes_down=sum(r.bytes_down for r in reports),
        degraded=next((r.degraded for r in reports if r.degraded), None),
        acceptance_rate=accepted / drafted if drafted else None,
    )


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _nth(sampling: Sampling, index: int) -> Sampling:
    """Each choice draws its own tokens, reproducibly."""
    if sampling.seed is None or index == 0:
        return sampling
    return msgspec.structs.replace(sampling, seed=sampling.seed + index)
