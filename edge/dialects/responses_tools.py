"""The tools of a Responses request as those of a chat, which knows no namespaces: their names come before a dot."""

from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import RequestError

HOSTED = ("web_search", "web_search_preview", "image_generation", "code_interpreter", "file_search")
"""Tools that OpenAI's servers run; here the model does without them."""
Tool = Mapping[str, Any]


def functions_of(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The functions among the tools, those of namespaces included; raises RequestError that names the tool."""
    functions = list[dict[str, Any]]()
    for at, tool in enumerate(tools):
        kind, param = tool.get("type"), f"tools[{at}]"
        if kind == "namespace":
            namespace = _name(tool, param)
            functions += [_function(one, joined(namespace, one.get("name"))) for one in _inner(tool, param)]
        elif kind == "function":
            functions.append(_function(tool, tool.get("name")))
        elif not isinstance(kind, str) or not kind.startswith(HOSTED):
            raise RequestError(f"tools of type {kind!r} are not supported", param=f"{param}.type")
    return functions


def chosen(tools: list[dict[str, Any]], choice: Tool) -> tuple[list[dict[str, Any]], Any]:
    """The tools that may be called, and how, in a chat request's form."""
    kind = choice.get("type")
    if kind == "function":
        return tools, {"type": "function", "function": {"name": joined(choice.get("namespace"), choice.get("name"))}}
    if kind == "allowed_tools" and isinstance(choice.get("tools"), list):
        names = [joined(one.get("namespace"), one.get("name")) for one in choice["tools"] if isinstance(one, dict)]
        return [tool for tool in tools if tool["function"].get("name") in names], choice.get("mode", "auto")
    raise RequestError(f"a tool_choice of type {kind!r} is not supported", param="tool_choice")


def joined(namespace: Any, name: Any) -> Any:
    """The name that the model sees."""
    return f"{namespace}.{name}" if namespace else name


def separated(name: str, tools: Sequence[Tool]) -> dict[str, str]:
    """The name that the model called as the client knows it, with its namespace if it has one."""
    for tool in tools:
        prefix = f"{tool.get('name')}."
        if tool.get("type") == "namespace" and name.startswith(prefix):
            return {"namespace": prefix[:-1], "name": name.removeprefix(prefix)}
    return {"name": name}


def _function(tool: Tool, name: Any) -> dict[str, Any]:
    more = {key: tool[key] for key in ("description", "parameters", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": ({"name": name} if name is not None else {}) | more}


def _name(tool: Tool, param: str) -> str:
    if not isinstance(tool.get("name"), str):
        raise RequestError("a namespace has a name", param=f"{param}.name")
    return str(tool["name"])


def _inner(tool: Tool, param: str) -> list[Tool]:
    """The functions of a namespace."""
    inner = tool.get("tools")
    if not isinstance(inner, list) or not all(isinstance(one, dict) for one in inner):
        raise RequestError("a namespace has a list of tools", param=f"{param}.tools")
    for at, one in enumerate(inner):
        if one.get("type") != "function":
            raise RequestError("a namespace has functions only", param=f"{param}.tools[{at}].type")
    return inner
