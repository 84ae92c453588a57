"""Calls that are JSON: Hermes and Qwen, Llama 3, Mistral."""

import re
from functools import partial

from edge.tool_calls.call_ends import JsonEnd
from edge.tool_calls.call_format import CallFormat, Schemas, call, loads
from edge.tool_calls.parts import ToolCall

NAMED = re.compile(r"\s*([^\s\[{]+)\s*(?:\[CALL_ID\][^\[]*)?(?:\[ARGS\])?\s*(?=\{)")
"""What Mistral writes before the arguments."""


def listed(text: str, schemas: Schemas) -> list[ToolCall]:
    """One call, or a list of them, each an object with a name and arguments."""
    value = loads(text)
    calls = value if isinstance(value, list) else [value]
    return [call(one["name"], one["arguments"] if "arguments" in one else one["parameters"]) for one in calls]


def named(text: str, schemas: Schemas) -> list[ToolCall]:
    """A list, or a name with the arguments behind it."""
    head = NAMED.match(text)
    return [call(head[1], loads(text[head.end() :]))] if head else listed(text, schemas)


_json = partial(CallFormat, end=JsonEnd, decode=listed)

HERMES = (
    _json("<tool_call>", close="</tool_call>", first="{["),
    _json("<tools>", close="</tools>", first="{[", known_only=True),
    _json("```json", close="```", first="{[", known_only=True),
    _json("{", keeps_begin=True, at_start=True, known_only=True),
)
"""Also what smaller Qwen models write instead: code blocks, another tag, or nothing around the JSON."""
LLAMA = (
    _json("<|python_tag|>", close=";", first="{["),
    _json("{", close=";", keeps_begin=True, at_start=True, known_only=True),
)
MISTRAL = (CallFormat("[TOOL_CALLS]", JsonEnd, named, inner=("[ARGS]", "[CALL_ID]")),)
