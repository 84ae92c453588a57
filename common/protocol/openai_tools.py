"""Defines and checks what a chat says of tools: their definitions, the choice among them, calls in the history."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, Struct

from common.errors import RequestError
from common.grammar import call_grammars
from common.grammar.spec import GrammarSpec
from common.protocol.codec import convert

MAX_TOOLS = 1024
T = TypeVar("T")
ToolName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:/-]{1,128}\Z")]
"""Each family of models writes names between marks of its own, which a name must not contain."""


class FunctionDefinition(Struct):
    """A function that the model may call; `parameters`: the JSON schema of its arguments."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(Struct):
    """One of the tools of a request."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Struct):
    """The function that a choice names."""

    name: str


class NamedTool(Struct):
    """A choice that names a tool."""

    type: Literal["function"]
    function: FunctionName


class CalledFunction(Struct):
    """A call's function; `arguments`: a JSON object as text."""

    name: str
    arguments: str


class MessageToolCall(Struct):
    """A call in an assistant's message."""

    function: CalledFunction
    id: str = ""
    type: Literal["function"] = "function"


@dataclass(frozen=True)
class Toolset:
    """What a request lets the model call."""

    tools: Sequence[Mapping[str, Any]] = ()
    """As the client wrote them, for the chat template."""
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The JSON schema of each tool's arguments, by the tool's name."""
    forced: bool = False
    """The answer must be calls, and nothing else."""
    parallel: bool = True
    """Whether one answer may have several calls."""

    def grammar(self, answer: GrammarSpec | None) -> GrammarSpec | None:
        """What an answer must match that is to match `answer` where it is no call."""
        if not self.forced and not (answer and self.schemas):
            return answer
        return call_grammars.grammar(self.schemas, self.parallel, None if self.forced else answer)


NO_TOOLS = Toolset()


def toolset(tools: list[dict[str, Any]] | None, choice: Any, parallel: bool | None) -> Toolset:
    """The tools that a choice leaves; raises RequestError that names the wrong field.

    `choice`: null or `auto`, `none`, `required`, or a tool that must be called.
    """
    if not tools:
        if choice not in (None, "none", "auto"):
            raise RequestError("tool_choice needs tools", param="tool_choice")
        return NO_TOOLS
    schemas = _schemas(tools)
    if choice == "none":
        return NO_TOOLS
    if choice in (None, "auto", "required"):
        return Toolset(tools, schemas, choice == "required", parallel is not False)
    name = _named(choice)
    if name not in schemas:
        raise RequestError(f"tool_choice names {name!r}, which is not among the tools", param="tool_choice")
    return Toolset(tools, {name: schemas[name]}, forced=True, parallel=False)


def _schemas(tools: list[dict[str, Any]]) -> dict[str, Mapping[str, Any]]:
    if len(tools) > MAX_TOOLS:
        raise RequestError(f"one request may have {MAX_TOOLS} tools", param="tools")
    schemas = dict[str, Mapping[str, Any]]()
    for at, tool in enumerate(tools):
        function = convert(tool, ToolDefinition, f"tools[{at}]").function
        if function.name in schemas:
            raise RequestError(f"two tools have the name {function.name!r}", param=f"tools[{at}].function.name")
        schemas[function.name] = function.parameters or {"type": "object"}
    return schemas


def _named(choice: Any) -> str:
    if isinstance(choice, str):
        raise RequestError('tool_choice is "none", "auto", "required" or names a tool', param="tool_choice")
    return convert(choice, NamedTool, "tool_choice").function.name


def arguments_of(call: MessageToolCall, param: str) -> dict[str, Any]:
    """The arguments of a call in the history; RequestError if they are no JSON object. Without any they are empty."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise RequestError(f"arguments are not JSON: {error}", param) from error
    if not isinstance(arguments, dict):
        raise RequestError("arguments must be a JSON object", param)
    return arguments
