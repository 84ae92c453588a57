"""Calls of Gemma 4 and FunctionGemma: like JSON, with bare keys and quotation marks of their own."""

import json
import re
from functools import partial

from edge.tool_calls.call_ends import MarkerEnd
from edge.tool_calls.call_format import CallFormat, Schemas, call, loads
from edge.tool_calls.parts import ToolCall

CALL = re.compile(r"\s*call:([^{\s]+)\s*(\{.*\})\s*", re.DOTALL)
BARE_KEY = re.compile(r"([{,]\s*)([^\s{}\[\],:\"]+)\s*:")


def gemma(quote: str, end: str, text: str, schemas: Schemas) -> list[ToolCall]:
    """The call `call:name{key:value,…}`; strings stand between two `quote`."""
    match = CALL.fullmatch(text.removesuffix(end))
    if match is None:
        raise ValueError("no call")
    parts = match[2].split(quote)
    outside = [BARE_KEY.sub(r'\1"\2":', part) for part in parts[::2]]
    inside = [*(json.dumps(part) for part in parts[1::2]), ""]
    return [call(match[1], loads("".join(a + b for a, b in zip(outside, inside, strict=True))))]


def _format(begin: str, quote: str, end: str) -> CallFormat:
    return CallFormat(begin, partial(MarkerEnd, end), partial(gemma, quote, end), inner=(quote, end))


GEMMA = (_format("<|tool_call>", '<|"|>', "<tool_call|>"),)
FUNCTION_GEMMA = (_format("<start_function_call>", "<escape>", "<end_function_call>"),)
