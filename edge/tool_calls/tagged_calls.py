"""Calls in tags, a tag for each argument: Qwen3-Coder and Qwen3.5. The tool's schema tells text from other values."""

import re
from functools import partial
from typing import Any

from edge.tool_calls.call_ends import MarkerEnd
from edge.tool_calls.call_format import CallFormat, Schemas, call, loads
from edge.tool_calls.parts import ToolCall

FUNCTION = re.compile(r"\s*<function=([^>]+)>(.*)</function>\s*", re.DOTALL)
PARAMETER = re.compile(r"\s*<parameter=([^>]+)>(.*?)</parameter>\s*(?=<parameter=|\Z)", re.DOTALL)


def tagged(text: str, schemas: Schemas) -> list[ToolCall]:
    """One function with its parameters; nothing else may stand between the tags."""
    function = FUNCTION.fullmatch(text.removesuffix("</tool_call>"))
    if function is None:
        raise ValueError("no function")
    name, body = function[1].strip(), function[2]
    properties = schemas.get(name, {}).get("properties", {})
    arguments, at = dict[str, Any](), 0
    while body[at:].strip():
        match = PARAMETER.match(body, at)
        if match is None:
            raise ValueError("text between parameters")
        key, at = match[1].strip(), match.end()
        arguments[key] = value(match[2].removeprefix("\n").removesuffix("\n"), properties.get(key, {}))
    return [call(name, arguments)]


def value(text: str, schema: Any) -> Any:
    """An argument as its schema wants it; text where nothing else fits."""
    types = types_of(schema)
    if types == {"string"}:
        return text
    plain = text.strip()
    if types and plain in ("True", "False", "None"):  # as Python spells them
        plain = {"True": "true", "False": "false", "None": "null"}[plain]
    try:
        return loads(plain)
    except ValueError:
        return text


def types_of(schema: Any) -> set[str]:
    """The JSON types that a schema names; empty if it names none."""
    if not isinstance(schema, dict):
        return set()
    own = schema.get("type", [])
    types = {own} if isinstance(own, str) else {one for one in own if isinstance(one, str)}
    types |= {"string"} if all(isinstance(one, str) for one in schema.get("enum") or [None]) else set()
    return types.union(*(types_of(one) for name in ("anyOf", "oneOf") for one in schema.get(name) or []))


QWEN_CODER = (
    CallFormat("<tool_call>", partial(MarkerEnd, "</tool_call>"), tagged, first="<"),
    CallFormat(
        "<function=", partial(MarkerEnd, "</function>"), tagged, close="</tool_call>", keeps_begin=True, known_only=True
    ),
)
"""The second: the model at times forgets the outer tag."""
