"""Checks bodies of the cloud's /v1 routes: as vLLM's request models do, and what those leave to the chat template."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from msgspec import Struct
from pydantic import TypeAdapter, ValidationError
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.tokenize.protocol import TokenizeRequest
from vllm.exceptions import VLLMError

from cloud.routes.wrong_fields import refusal
from common.errors import RequestError
from common.protocol.codec import convert
from common.protocol.content.openai_content import Role, check_contents
from common.protocol.content.openai_options import ServiceTier
from common.protocol.openai_tools import CalledFunction


class CallFields(Struct):
    """A call in an assistant's message: with an id, which the edge needs not."""

    id: str
    function: CalledFunction
    type: Literal["function"]


class MessageFields(Struct):
    """What decides whether a message needs a content; the rest is vLLM's to check."""

    role: Role
    content: Any = None
    tool_calls: list[CallFields] | None = None
    function_call: Any = None
    audio: Any = None
    refusal: Any = None
    reasoning: Any = None
    reasoning_content: Any = None


class TextFields(Struct):
    """Of text completions."""

    service_tier: ServiceTier | None = None


class ChatFields(TextFields):
    """Of chats."""

    messages: list[MessageFields] = []


class InputFields(Struct):
    """Of an item of a response's input."""

    role: Literal["developer", "system", "user", "assistant"] | None = None


class ResponsesFields(Struct):
    """Of responses."""

    input: str | list[InputFields] = ""


class AnthropicFields(Struct):
    """Of Anthropic's Messages."""

    service_tier: Literal["auto", "standard_only"] | None = None


UNCHECKED: Mapping[Any, type[Struct]] = {
    ChatCompletionRequest: ChatFields,
    CompletionRequest: TextFields,
    TokenizeRequest: ChatFields,
    ResponsesRequest: ResponsesFields,
    AnthropicMessagesRequest: AnthropicFields,
    AnthropicCountTokensRequest: AnthropicFields,
}
"""The fields that vLLM takes with any value, leaves to the chat template, or refuses in words that name another one, by
its models of bodies."""


def _check(body: dict[str, Any], fields: type[Struct]) -> None:
    """Refuses as the edge does; the message begins with the wrong field's path, as those about vLLM's models do."""
    try:
        read = convert(body, fields)
    except RequestError as error:
        raise RequestError(f"{error.param}: {error.message}", param=error.param) from error
    if isinstance(read, ChatFields):
        check_contents(read.messages)


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def validate(body: dict[str, Any], kind: Any) -> Any:
    """`body` as one of vLLM's request models, or a union of them; raises RequestError that names the wrong field."""
    if kind in UNCHECKED:
        _check(body, UNCHECKED[kind])
    try:
        made = _adapter(kind).validate_python(body)
    except ValidationError as error:
        raise refusal(error, body) from error
    except VLLMError as error:
        raise RequestError(str(error), param=getattr(error, "parameter", None)) from error
    except (TypeError, AttributeError, LookupError) as error:
        # vLLM's own checks of a body run before its types are checked, and take them for granted.
        raise _wrong_type(body, kind) from error
    _read_contents(made, body)
    return made


def _read_contents(made: Any, body: dict[str, Any]) -> None:
    """Has pydantic check the parts of messages, which it does where they are read: else within vLLM."""
    for at, message in enumerate(getattr(made, "messages", None) or ()):
        if isinstance(message, dict) and isinstance(parts := message.get("content"), Iterator):
            try:
                message["content"] = list(parts)
            except ValidationError as error:
                raise refusal(error, body, "messages", at, "content") from error


def _wrong_type(body: dict[str, Any], kind: Any) -> RequestError:
    """Names the first field whose value is not of the field's own type."""
    for model in get_args(kind) or (kind,):
        for name in body.keys() & model.model_fields.keys():
            try:
                TypeAdapter(model.model_fields[name].annotation).validate_python(body[name])
            except ValidationError as error:
                return refusal(error, body, name)
    return RequestError("the body has a field of a wrong type")
