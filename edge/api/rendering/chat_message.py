"""Renders what an answer consists of as OpenAI's message, or as what a chunk of a stream adds to it."""

import uuid
from collections.abc import Sequence
from typing import Any

from edge.tool_calls.parts import Part, Said, Thought, ToolCall


def new_call_id() -> str:
    """Nine letters and digits: Mistral's templates take no other ids."""
    return uuid.uuid4().hex[:9]


def text_of(parts: Sequence[Part]) -> str:
    """What is said."""
    return "".join(part.text for part in parts if isinstance(part, Said))


def message(parts: Sequence[Part]) -> dict[str, Any]:
    """The whole message; its content is null where there is nothing but calls."""
    text, calls = text_of(parts), calls_of(parts)
    content = {"content": text or (None if calls else "")}
    return {"role": "assistant", **content, **_thoughts(parts), **({"tool_calls": calls} if calls else {})}


def delta(parts: Sequence[Part], first: bool, calls_before: int) -> dict[str, Any]:
    """What a chunk adds, `calls_before` calls after the message's beginning; each call is in one chunk."""
    role = {"role": "assistant"} if first else {}
    text, calls, thoughts = text_of(parts), calls_of(parts), _thoughts(parts)
    numbered = [{"index": calls_before + at} | call for at, call in enumerate(calls)]
    content = {"content": text} if text or not (calls or thoughts) else {}
    return {**role, **content, **thoughts, **({"tool_calls": numbered} if calls else {})}


def calls_of(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """The tool calls in OpenAI's form."""
    calls = [part for part in parts if isinstance(part, ToolCall)]
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]


def _thoughts(parts: Sequence[Part]) -> dict[str, Any]:
    """Under both names that clients read."""
    text = "".join(part.text for part in parts if isinstance(part, Thought))
    return {"reasoning_content": text, "reasoning": text} if text else {}
