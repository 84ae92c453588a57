"""POST /infill: the text that belongs between two others, asked and answered as in llama-server."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from common.protocol import codec
from edge.api import prompts, ways
from edge.api.choice import TextPiece
from edge.api.completions import Completion
from edge.api.context import ServerContext
from edge.api.plans import redacted_request
from edge.api.rendering.chat_message import text_of
from edge.api.resolve import resolve
from edge.dialects.infill_request import InfillRequest
from edge.dialects.line_limits import LineLimits
from edge.privacy.private_requests import refuse_contradiction


class InfillAnswer:
    """The answer to one request; read it once, by `whole` or by `events`."""

    def __init__(self, body: InfillRequest, completion: Completion, choices: int) -> None:
        self._body = body
        self._completion = completion
        seconds = (body.t_max_predict_ms or 0) / 1e3 or None
        self._texts = [""] * choices
        self._limits = [LineLimits(body.n_indent or 0, seconds) for _ in range(choices)]
        self._last: list[TextPiece | None] = [None] * choices
        """Of each choice, the piece that ends it."""

    async def whole(self) -> Any:
        """llama-server's object; a list of them for several choices."""
        async with aclosing(self._pieces()) as pieces:
            async for choice, text in pieces:
                self._texts[choice] += text
        replies = [self._selected(self._ended(choice, text)) for choice, text in enumerate(self._texts)]
        return replies if len(replies) > 1 else replies[0]

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events: parts of the text, and at last, for each choice, the object with an empty text."""
        async with aclosing(self._pieces()) as pieces:
            async for choice, text in pieces:
                yield _event({"index": choice, "content": text, "stop": False, **self._counts()})
        for choice in range(len(self._texts)):
            yield _event(self._selected(self._ended(choice, "")))

    async def _pieces(self) -> AsyncGenerator[tuple[int, str], None]:
        """What each choice adds, until all have ended or reached a limit."""
        async with aclosing(self._completion.pieces()) as pieces:
            async for piece in pieces:
                limits = self._limits[piece.choice]
                text = limits.take(text_of(piece.parts)) if self._body.max_predicted != 0 else ""
                if piece.finish_reason is not None and self._last[piece.choice] is None:
                    self._last[piece.choice] = piece
                if text:
                    yield piece.choice, text
                if all(one.ended or last for one, last in zip(self._limits, self._last, strict=True)):
                    return

    def _counts(self) -> dict[str, int]:
        usage = self._completion.usage()
        predicted = usage["completion_tokens"] if self._body.max_predicted != 0 else 0
        return {"tokens_predicted": predicted, "tokens_evaluated": usage["prompt_tokens"]}

    def _ended(self, choice: int, text: str) -> dict[str, Any]:
        """The object of a choice that has ended."""
        limits, last, counts = self._limits[choice], self._last[choice], self._counts()
        stopped_by = last.stopped_by if last and not limits.ended else None
        ended = last is not None and last.finish_reason == "stop" and not limits.ended
        return {
            "index": choice,
            "content": text,
            "tokens": [],
            "stop": True,
            "model": self._completion.model,
            **counts,
            "has_new_line": limits.has_line_break,
            "truncated": False,
            "stop_type": "word" if stopped_by else "eos" if ended else "limit",
            "stopping_word": stopped_by or "",
            "tokens_cached": sum(counts.values()),
            **self._completion.last(),
        }

    def _selected(self, reply: dict[str, Any]) -> dict[str, Any]:
        """Only the fields that the request names, if it does; `a/b` keeps that name, as in llama-server."""
        names = self._body.response_fields
        if names is None:
            return reply
        found = ((name, _nested(reply, name.split("/"))) for name in names)
        return {name: value for name, value in found if value is not None}


def _nested(value: Any, path: Sequence[str]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + codec.encode(value) + b"\n\n"


async def answer(body: InfillRequest, context: ServerContext) -> InfillAnswer:
    """The answer, not yet begun; raises RequestError that names the wrong field."""
    body.refuse_unsupported()
    named = ways.applied(body, context)
    refuse_contradiction(named)
    model = context.model(named.mode or context.config.inference.mode)
    named, secrets = await redacted_request(named, context)
    ids = await prompts.of_gap(model, named.fill_in, named.max_predicted)
    resolved = await resolve(named.completion(ids), context, model.engine.end_tokens, secrets)
    return InfillAnswer(body, Completion(resolved, context), len(resolved.answers))
