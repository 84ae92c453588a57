"""How one family of models writes a tool call: where it begins and ends, and how it is decoded."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge.tool_calls.call_ends import CallEnd
from edge.tool_calls.parts import ToolCall

Schemas = Mapping[str, Mapping[str, Any]]
"""The JSON schema of each tool's arguments, by the tool's name."""
FAULTS = (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError, SyntaxError)
"""What decoding a malformed call may raise."""


@dataclass(frozen=True)
class CallFormat:
    """`decode` gets what stands between `begin` and the end, in whole; it raises one of FAULTS if that is no call."""

    begin: str
    end: Callable[[], CallEnd]
    decode: Callable[[str, Schemas], list[ToolCall]]
    close: str = ""
    """What may follow, and belongs to the call."""
    first: str = ""
    """The characters of which one must follow `begin`, after white space; empty: any."""
    inner: tuple[str, ...] = ()
    """Special tokens that `decode` needs to see, other than `begin` and `close`."""
    keeps_begin: bool = False
    """Whether `begin` is a part of what is decoded."""
    at_start: bool = False
    """Only where the answer begins, or after another call."""
    known_only: bool = False
    """Only calls of tools that the request has: other text may look like it."""


def call(name: Any, arguments: Any) -> ToolCall:
    """A call whose arguments are surely a JSON object; raises one of FAULTS if they are none."""
    if isinstance(arguments, str):
        arguments = loads(arguments or "{}")
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("a call has a name and an object of arguments")
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    (name + text).encode()  # a lone surrogate cannot be sent
    return ToolCall(name, text)


def loads(text: str) -> Any:
    """JSON as models write it: line breaks in strings are allowed, numbers that JSON does not have are not."""
    return json.loads(text, strict=False, parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
