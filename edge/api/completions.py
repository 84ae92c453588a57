"""One /v1 response: runs its choices together and renders them as OpenAI's JSON object or as a stream's events."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from common.protocol import codec
from common.protocol.openai_responses import Usage, dump
from common.types import Collaboration, Provenance
from edge.api import logprobs
from edge.api.choice import Choice, TextPiece
from edge.api.context import ServerContext
from edge.api.logprobs import ScoredToken
from edge.api.resolve import ResolvedRequest


class Completion:
    """The response to a chat or text completion request; read it once, by `whole` or by `events`."""

    def __init__(self, request: ResolvedRequest, context: ServerContext) -> None:
        self._request = request
        self._at_once = context.config.edge.model.sequences
        self._choices = [Choice(index, request, context) for index in range(len(request.answers))]
        self._head = {
            "id": ("chatcmpl-" if request.chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": request.engine.model_name,
        }

    async def whole(self) -> dict[str, Any]:
        """The response object, when all choices are finished."""
        parts: list[list[TextPiece]] = [[] for _ in self._choices]
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                parts[piece.choice].append(piece)
        choices = [self._whole_choice(index, own) for index, own in enumerate(parts)]
        kind = "chat.completion" if self._request.chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, "usage": self._usage(), **self._collaboration()}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The response as server-sent events: the chunks, then `[DONE]`."""
        async with aclosing(self._chunks()) as chunks:
            async for chunk in chunks:
                yield b"data: " + codec.encode(chunk) + b"\n\n"
        yield b"data: [DONE]\n\n"

    async def _chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """The stream's chunks; the last one carries the collaboration object, and the usage if it was asked for."""
        kind = "chat.completion.chunk" if self._request.chat else "text_completion"
        head, include_usage = {**self._head, "object": kind}, self._request.include_usage
        usage = {"usage": None} if include_usage else {}
        unfinished, begun = len(self._choices), set[int]()
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                choice = self._chunk_choice(piece, first=piece.choice not in begun)
                begun.add(piece.choice)
                unfinished -= piece.finish_reason is not None
                last = {} if unfinished or include_usage else self._collaboration()
                yield {**head, "choices": [choice], **usage, **last}
        if include_usage:
            yield {**head, "choices": [], "usage": self._usage(), **self._collaboration()}

    async def _pieces(self) -> AsyncGenerator[TextPiece, None]:
        """The pieces of all choices as they arrive; leaving this early cancels what still runs.

        Choices do not wait for the reader, so that a client that reads slowly holds no sequence longer than its answer
        takes. No more of them run at once than the engine has sequences: the others would fill its queue. The first
        choice of a prompt starts before the others, so that they find the prompt's KV.
        """
        events: asyncio.Queue[TextPiece | asyncio.Task[None]] = asyncio.Queue()
        turns = asyncio.Semaphore(self._at_once)
        choices = self._request.choices
        prefilled = [asyncio.Event() for _ in range(len(self._choices) // choices)]

        async def run(choice: Choice) -> None:
            prompt, place = divmod(choice.index, choices)
            if place:
                await prefilled[prompt].wait()
            async with turns, aclosing(choice.pieces()) as pieces:
                async for piece in pieces:
                    events.put_nowait(piece)
                    prefilled[prompt].set()

        tasks = [asyncio.create_task(run(choice)) for choice in self._choices]
        for task in tasks:
            task.add_done_callback(events.put_nowait)
        try:
            ended = 0
            while ended < len(tasks):
                event = await events.get()
                if isinstance(event, TextPiece):
                    yield event
                else:
                    ended += 1
                    event.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _whole_choice(self, index: int, pieces: list[TextPiece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        content = {"message": {"role": "assistant", "content": text}} if self._request.chat else {"text": text}
        scores = self._logprobs([token for piece in pieces for token in piece.tokens])
        choice = {"index": index, **content, "logprobs": scores, "finish_reason": pieces[-1].finish_reason}
        sources = [token for piece in pieces for token in piece.sources]
        return choice | {"collaboration": {"tokens": dump(sources)}} if sources else choice

    def _chunk_choice(self, piece: TextPiece, first: bool) -> dict[str, Any]:
        if self._request.chat:
            role = {"role": "assistant"} if first else {}
            content: dict[str, Any] = {"delta": {**role, "content": piece.text}}
        else:
            content = {"text": piece.text}
        scores = self._logprobs(piece.tokens) if piece.tokens else None
        choice = {"index": piece.choice, **content, "logprobs": scores, "finish_reason": piece.finish_reason}
        if piece.sources:
            choice["collaboration"] = {"tokens": dump(piece.sources)}
        return choice | {"provenance": piece.provenance} if piece.provenance else choice

    def _logprobs(self, tokens: list[ScoredToken]) -> dict[str, Any] | None:
        request = self._request
        if request.top_logprobs is None:
            return None
        shape = logprobs.of_chat if request.chat else logprobs.of_completion
        return shape(tokens, request.top_logprobs, lambda token: request.engine.piece(token, special=True))

    def _usage(self) -> dict[str, Any]:
        prompt, completed = self._request.prompt_tokens, sum(choice.tokens for choice in self._choices)
        usage: dict[str, Any] = dump(Usage(prompt, completed, prompt + completed))
        return usage

    def _collaboration(self) -> dict[str, Any]:
        return {"collaboration": dump(combined([choice.report for choice in self._choices]))}


def combined(reports: Sequence[Collaboration]) -> Collaboration:
    """One report for several choices: counts and times are added, scores averaged."""
    if len(reports) == 1:
        return reports[0]
    scores = [r.confidence_score for r in reports if r.confidence_score is not None]
    drafted, accepted = sum(r.drafted for r in reports), sum(r.accepted for r in reports)
    return Collaboration(
        mode=reports[0].mode,
        lossless=all(r.lossless for r in reports),
        way=reports[0].way,
        rounds=sum(r.rounds for r in reports),
        cloud_steps=sum(r.cloud_steps for r in reports),
        edge_drawn=sum(r.edge_drawn for r in reports),
        edge_wasted=sum(r.edge_wasted for r in reports),
        drafted=drafted,
        accepted=accepted,
        tokens={str(p): sum(r.tokens[p] for r in reports) for p in Provenance},
        confidence_score=sum(scores) / len(scores) if scores else None,
        edge_latency_ms=sum(r.edge_latency_ms for r in reports),
        cloud_latency_ms=sum(r.cloud_latency_ms for r in reports),
        cloud_calls=sum(r.cloud_calls for r in reports),
        bytes_up=sum(r.bytes_up for r in reports),
        bytes_down=sum(r.bytes_down for r in reports),
        exits={layer: sum(r.exits[layer] for r in reports) for layer in reports[0].exits},
        owed=sum(r.owed for r in reports),
        cloud_positions=sum(r.cloud_positions for r in reports),
        explored=sum(r.explored for r in reports),
        degraded=next((r.degraded for r in reports if r.degraded), None),
        acceptance_rate=accepted / drafted if drafted else None,
    )
