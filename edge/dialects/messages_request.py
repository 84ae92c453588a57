"""Reads the body of POST /v1/messages and converts it to a chat request."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from common.errors import RequestError
from common.protocol.openai import ChatRequest, Message
from edge.dialects.collaboration_fields import CollaborationFields, chat_request
from edge.dialects.content_blocks import messages_of, text_of

NAMES = {
    "stop": "stop_sequences",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "thinking_token_budget": "thinking.budget_tokens",
}
"""What the fields of a chat are called here."""
THINKS = {"enabled": True, "adaptive": True, "between_tools": True, "disabled": False}


class OutputConfig(msgspec.Struct):
    """`effort` reaches the chat template; `format`: the JSON schema of the answer."""

    effort: str | None = None
    format: dict[str, Any] | None = None


class CountTokensRequest(CollaborationFields, kw_only=True):
    """Body of POST /v1/messages/count_tokens. The fields from `metadata` on have no effect."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    model: str = ""
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    mcp_servers: list[Any] | None = None
    metadata: Any = None
    service_tier: Literal["auto", "standard_only"] | None = None
    context_management: Any = None
    cache_control: Any = None
    inference_geo: str | None = None
    betas: Any = None
    container: Any = None
    diagnostics: Any = None
    speed: Any = None
    user_profile_id: str | None = None
    workspace_id: str | None = None

    def chat(self) -> ChatRequest:
        """The chat request; raises RequestError that names the wrong field."""
        if self.mcp_servers:
            raise RequestError("mcp_servers is not supported", param="mcp_servers")
        system = [Message("system", text_of(self.system, "system"))] if self.system else []
        messages = [*system, *messages_of(self.messages)]
        if messages[-1].role == "assistant":
            raise RequestError("an answer that the request begins is not supported", param="messages")
        kind = (self.tool_choice or {}).get("type", "auto")
        config = self.output_config or OutputConfig()
        fields = {
            **self.own_fields(),
            **self._more(),
            "model": self.model or None,
            "messages": msgspec.to_builtins(messages),
            "tools": _tools(self.tools or []) or None,
            "tool_choice": _choice(self.tool_choice, kind) if self.tools else None,
            "parallel_tool_calls": False if (self.tool_choice or {}).get("disable_parallel_tool_use") else None,
            "thinking_token_budget": (self.thinking or {}).get("budget_tokens"),
            "enable_thinking": _thinks((self.thinking or {}).get("type")),
            "reasoning_effort": config.effort,
            "response_format": _format(config.format),
        }
        return chat_request(fields)

    def _more(self) -> dict[str, Any]:
        """What only a request for an answer has."""
        return {}


class MessagesRequest(CountTokensRequest, kw_only=True):
    """Body of POST /v1/messages."""

    max_tokens: Annotated[int, Meta(ge=1)]
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None

    def _more(self) -> dict[str, Any]:
        names = ("max_tokens", "stream", "temperature", "top_p", "top_k")
        return {name: getattr(self, name) for name in names} | {"stop": self.stop_sequences}


def _tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    functions = []
    for at, tool in enumerate(tools):
        if tool.get("type", "custom") != "custom":
            raise RequestError(f"tools of type {tool['type']!r} are not supported", param=f"tools[{at}].type")
        if not isinstance(tool.get("input_schema"), dict):
            raise RequestError("a tool has a JSON schema of its input", param=f"tools[{at}].input_schema")
        description = {"description": tool["description"]} if tool.get("description") else {}
        function = {"name": tool.get("name"), **description, "parameters": tool["input_schema"]}
        functions.append({"type": "function", "function": function})
    return functions


def _choice(choice: dict[str, Any] | None, kind: Any) -> Any:
    if kind == "tool":
        return {"type": "function", "function": {"name": (choice or {}).get("name")}}
    names = {"auto": "auto", "any": "required", "none": "none"}
    if kind not in names:
        raise RequestError(f"a tool_choice of type {kind!r} is not supported", param="tool_choice.type")
    return names[kind]


def _thinks(kind: Any) -> bool | None:
    """Whether the model is to think; None: as it likes."""
    if kind is not None and kind not in THINKS:
        raise RequestError(f"unknown type {kind!r}; allowed: {', '.join(THINKS)}", param="thinking.type")
    return THINKS.get(kind)


def _format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    if given is None:
        return None
    if given.get("type") != "json_schema" or not isinstance(given.get("schema"), dict):
        raise RequestError("of formats a json_schema with its schema is supported", param="output_config.format")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": given["schema"]}}
