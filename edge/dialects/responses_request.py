"""Reads the body of POST /v1/responses and converts it, with what went before, to a chat request."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from common.errors import RequestError
from common.protocol.openai import ChatRequest, Message
from edge.dialects.collaboration_fields import CollaborationFields, chat_request
from edge.dialects.input_items import messages_of
from edge.dialects.responses_tools import chosen, functions_of

NAMES = {
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
"""What the fields of a chat are called here."""


class ReasoningOptions(msgspec.Struct):
    """`effort` reaches the chat template; thoughts are never summarized."""

    effort: str | None = None
    summary: Any = None


class TextOptions(msgspec.Struct):
    """`format`: of the answer."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(CollaborationFields, kw_only=True):
    """The fields from `include` on have no effect, whatever their value."""

    input: str | list[dict[str, Any]] = ""
    model: str = ""
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    service_tier: str | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    truncation: str | None = None
    include: Any = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    client_metadata: Any = None
    stream_options: Any = None
    top_logprobs: int | None = None
    max_tool_calls: int | None = None

    def messages(self, before: Sequence[Message]) -> list[Message]:
        """The conversation `before` with the input, without instructions."""
        new = [Message("user", self.input)] if isinstance(self.input, str) else messages_of(self.input, before)
        return [*before, *new]

    def chat(self, messages: Sequence[Message]) -> ChatRequest:
        """The chat request for the whole conversation; raises RequestError that names the wrong field."""
        for name in ("background", "conversation", "prompt"):
            if getattr(self, name):
                raise RequestError(f"{name} is not supported", param=name)
        if self.truncation not in (None, "disabled"):
            raise RequestError('of truncations only "disabled" is supported', param="truncation")
        instructions = [Message("system", self.instructions)] if self.instructions else []
        messages = with_one_system([*instructions, *messages])
        if not messages:
            raise RequestError("input must not be empty", param="input")
        tools, choice = functions_of(self.tools or []), self.tool_choice
        if isinstance(choice, dict):
            tools, choice = chosen(tools, choice)
        fields = {
            **self.own_fields(),
            **{name: getattr(self, name) for name in ("model", "stream", "temperature", "top_p", "service_tier")},
            "messages": msgspec.to_builtins(messages),
            "max_tokens": self.max_output_tokens,
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "response_format": _format(self.text.format if self.text else None),
            "tools": tools or None,
            "tool_choice": choice if tools else None,
            "parallel_tool_calls": self.parallel_tool_calls,
        }
        return chat_request(fields)


def with_one_system(messages: list[Message]) -> list[Message]:
    """The messages, those of the system that begin them as one: many templates take no more."""
    leading = next((at for at, message in enumerate(messages) if message.role != "system"), len(messages))
    texts = [message.text for message in messages[:leading]]
    return [Message("system", "\n\n".join(texts)), *messages[leading:]] if texts else messages


def _format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """A chat's response_format: there the schema is nested."""
    if given is None or given.get("type") != "json_schema":
        return given
    keys = [key for key in ("name", "schema", "description", "strict") if key in given]
    return {"type": "json_schema", "json_schema": {key: given[key] for key in keys}}
