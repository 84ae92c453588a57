"""The span of one answer, by OpenTelemetry's conventions for generative AI, with the report of how it was made."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from common.tracing.spans import AttributeValue, records, records_content, span
from common.types import Collaboration
from edge.api.choice import Choice, TextPiece
from edge.api.rendering.chat_message import text_of
from edge.api.resolve import ResolvedAnswer, ResolvedRequest

PROVIDER = "edgecloud"


@contextmanager
def answer_span(request: ResolvedRequest, choice: Choice) -> Iterator[Callable[[TextPiece], None]]:
    """Around one answer; its reader calls what this gives with each piece."""
    if not records():
        yield lambda piece: None
        return
    answer, texts = request.answers[choice.index], list[str]()
    operation = "chat" if request.chat else "text_completion"

    def observe(piece: TextPiece) -> None:
        if content:
            texts.append(text_of(piece.parts))
        if piece.finish_reason:
            traced.set({"gen_ai.response.finish_reasons": [piece.finish_reason]})

    content = records_content()
    with span(f"{operation} {request.model_name}") as traced:
        traced.set({"gen_ai.operation.name": operation, "gen_ai.provider.name": PROVIDER})
        traced.set(_asked(request, answer))
        try:
            yield observe
        finally:
            traced.set({"gen_ai.usage.output_tokens": choice.tokens})
            if choice.begun:
                traced.set({}, **_report(choice.report))
            if content:
                traced.set({"gen_ai.input.messages": _message("user", _prompt(answer))})
                traced.set({"gen_ai.output.messages": _message("assistant", "".join(texts))})


def _asked(request: ResolvedRequest, answer: ResolvedAnswer) -> dict[str, AttributeValue]:
    sampling = answer.decoding.sampling
    seed: dict[str, AttributeValue] = {} if sampling.seed is None else {"gen_ai.request.seed": sampling.seed}
    return seed | {
        "gen_ai.request.model": request.model_name,
        "gen_ai.request.max_tokens": answer.decoding.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.usage.input_tokens": len(answer.decoding.prompt),
    }


def _report(report: Collaboration) -> dict[str, AttributeValue | None]:
    """All that is one value, as the `collaboration` object names it, and the tokens by provenance.

    Of `degraded` only whether: a foreign server's error may quote what it was asked.
    """
    values = msgspec.structs.asdict(report)
    plain = {name: value for name, value in values.items() if not isinstance(value, dict)}
    plain["degraded"] = report.degraded is not None
    return plain | {f"tokens.{source}": count for source, count in report.tokens.items()}


def _prompt(answer: ResolvedAnswer) -> str:
    """What the model reads, the chat template's own words included."""
    pieces = (answer.prompt.piece(token, special=True) for token in answer.decoding.prompt)
    return b"".join(pieces).decode(errors="replace")


def _message(role: str, text: str) -> str:
    part = {"type": "text", "content": text}
    return msgspec.json.encode([{"role": role, "parts": [part]}]).decode()
