"""One /v1 response: runs its choices together and renders them as OpenAI's JSON object or as a stream's events."""

import asyncio
import math
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from common.cloud_client.pool import clouds_called
from common.config_edge import EdgeConfig
from common.decoding.progress import watched
from common.protocol import codec
from common.protocol.openai_responses import CompletionTokensDetails, PromptTokensDetails, Usage, dump
from edge.api.answer_span import answer_span
from edge.api.choice import Choice, TextPiece
from edge.api.context import ServerContext
from edge.api.rendering import logprobs
from edge.api.rendering.chat_message import delta, message, text_of
from edge.api.rendering.joint_report import combined
from edge.api.rendering.logprobs import ScoredToken
from edge.api.rendering.timings import Timings
from edge.api.resolve import ResolvedRequest
from edge.engine.batch_turns import batch_turns


class Completion:
    """The response to a chat or text completion request; read it once, by `whole` or by `events`."""

    def __init__(self, request: ResolvedRequest, context: ServerContext) -> None:
        self._request = request
        self._quotas = context.quotas
        self._time = Timings()
        self._at_once = _at_once(request, context.config.edge)
        self._choices = [Choice(index, request, context) for index in range(len(request.answers))]
        self._head = {
            "id": ("chatcmpl-" if request.chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": request.model_name,
        }

    @property
    def model(self) -> str:
        """The model's name, as the request has it."""
        return self._request.model_name

    async def whole(self) -> dict[str, Any]:
        """The response object, when all choices are finished."""
        parts: list[list[TextPiece]] = [[] for _ in self._choices]
        async with aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                parts[piece.choice].append(piece)
        choices = [self._whole_choice(index, own) for index, own in enumerate(parts)]
        kind = "chat.completion" if self._request.chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, "usage": self.usage(), **self.last()}

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
        usage: dict[str, Any] = {"usage": None} if include_usage else {}
        unfinished, begun = len(self._choices), set[int]()
        async with aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                choice = self._chunk_choice(piece, first=piece.choice not in begun)
                begun.add(piece.choice)
                unfinished -= piece.finish_reason is not None
                last = self._timings() if unfinished or include_usage else self.last()
                if self._request.continuous_usage:
                    usage = {"usage": self.usage()}
                yield {**head, "choices": [choice], **usage, **last}
        if include_usage:
            yield {**head, "choices": [], "usage": self.usage(), **self.last()}

    async def pieces(self) -> AsyncGenerator[TextPiece, None]:
        """The pieces of all choices as they arrive; leaving this early cancels what still runs.

        Choices do not wait for the reader, so that a client that reads slowly holds no sequence longer than its answer
        takes. All are admitted before the first begins (else OverloadedError, or RateLimitError where the key has no
        tokens left); as many run at once as the engine has sequences. The first choice of a prompt starts before the
        others, so that they find the prompt's KV.
        """
        prompts = _edge_prompts(self._request)[: self._at_once]
        with self._request.engine.admit(len(prompts), sum(prompts)):
            self._quotas.admit_prompt(self._prompt_tokens)
            async with aclosing(self._admitted()) as pieces:
                async for piece in pieces:
                    yield piece

    async def _admitted(self) -> AsyncGenerator[TextPiece, None]:
        events: asyncio.Queue[TextPiece | asyncio.Task[None]] = asyncio.Queue()
        turns = batch_turns.get() or asyncio.Semaphore(self._at_once)
        choices = self._request.choices
        prefilled = [asyncio.Event() for _ in range(len(self._choices) // choices)]

        async def run(choice: Choice) -> None:
            prompt, place = divmod(choice.index, choices)
            if place:
                await prefilled[prompt].wait()
            clouds_called.set([])
            with answer_span(self._request, choice) as observe:
                async with turns, watched(), aclosing(choice.pieces()) as pieces:
                    async for piece in pieces:
                        self._time.tick()
                        observe(piece)
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
        said = [part for piece in pieces for part in piece.parts]
        content = {"message": message(said)} if self._request.chat else {"text": text_of(said)}
        scores = self._logprobs(index, [token for piece in pieces for token in piece.tokens])
        choice = {"index": index, **content, "logprobs": scores, "finish_reason": pieces[-1].finish_reason}
        sources = [token for piece in pieces for token in piece.sources]
        return choice | {"collaboration": {"tokens": dump(sources)}} if sources else choice

    def _chunk_choice(self, piece: TextPiece, first: bool) -> dict[str, Any]:
        if self._request.chat:
            content: dict[str, Any] = {"delta": delta(piece.parts, first, piece.calls_before)}
        else:
            content = {"text": text_of(piece.parts)}
        scores = self._logprobs(piece.choice, piece.tokens) if piece.tokens else None
        choice = {"index": piece.choice, **content, "logprobs": scores, "finish_reason": piece.finish_reason}
        if piece.sources:
            choice["collaboration"] = {"tokens": dump(piece.sources)}
        return choice | {"provenance": piece.provenance} if piece.provenance else choice

    def _logprobs(self, choice: int, tokens: list[ScoredToken]) -> dict[str, Any] | None:
        request = self._request
        if request.top_logprobs is None:
            return None
        shape = logprobs.of_chat if request.chat else logprobs.of_completion
        piece = request.answers[choice].prompt.piece
        return shape(tokens, request.top_logprobs, lambda token: piece(token, special=True))

    def usage(self) -> dict[str, Any]:
        """Token counts so far."""
        prompt, completed = self._prompt_tokens, self._completed
        details = self._details() if self._request.chat else None
        counts = Usage(prompt, completed, prompt + completed, PromptTokensDetails(self._cached), details)
        usage: dict[str, Any] = dump(counts)
        return usage

    def _details(self) -> CompletionTokensDetails:
        given = sum(len(answer.prediction) for answer in self._request.answers) if self._request.predicted else 0
        accepted = min(given, sum(choice.report.predicted for choice in self._choices if choice.begun))
        thoughts = sum(choice.thought_tokens for choice in self._choices)
        return CompletionTokensDetails(thoughts, accepted, given - accepted)

    @property
    def _prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(choice.prompt_tokens for choice in self._choices[:: self._request.choices])

    @property
    def _completed(self) -> int:
        return sum(choice.tokens for choice in self._choices)

    @property
    def _cached(self) -> int:
        """Prompt tokens whose KV was found for the first choice of each prompt; the others find them all."""
        first = self._choices[:: self._request.choices]
        return sum(min(choice.report.cached_tokens, choice.prompt_tokens) for choice in first if choice.begun)

    def last(self) -> dict[str, Any]:
        """What only a whole response, or the last event of a stream, has."""
        return {"collaboration": dump(combined([choice.report for choice in self._choices])), **self._timings()}

    def _timings(self) -> dict[str, Any]:
        if not self._request.timings:
            return {}
        reports = [choice.report for choice in self._choices if choice.begun]
        drafted, accepted = sum(r.drafted for r in reports), sum(r.accepted for r in reports)
        tokens = self._prompt_tokens, self._cached, self._completed, drafted, accepted
        return {"timings": self._time.report(*tokens)}


def _edge_prompts(request: ResolvedRequest) -> list[int]:
    """The tokens of the prompts of those answers that the edge takes part in, the longest first."""
    drafting = [answer for answer in request.answers if answer.decoding.plan.uses_edge]
    return sorted((len(answer.prompt.edge_ids) for answer in drafting), reverse=True)


def _at_once(request: ResolvedRequest, config: EdgeConfig) -> int:
    """How many answers run at once: one for each sequence, or fewer whose prompts are within the limit of tokens."""
    prompts, tokens = _edge_prompts(request), config.limits.max_tokens_total or math.inf
    return next((n for n in range(config.model.sequences, 1, -1) if sum(prompts[:n]) <= tokens), 1)
