"""Converts the input items of a Responses request to messages of a chat."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from common.errors import RequestError
from common.protocol.codec import convert
from common.protocol.content.openai_content import Content, ContentPart
from common.protocol.openai import Message
from common.protocol.openai_tools import CalledFunction, MessageToolCall
from edge.dialects.responses_tools import joined

TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
T = TypeVar("T")


class MessageItem(msgspec.Struct):
    """A turn; the other kinds of items have a `type` of their own."""

    role: Literal["developer", "system", "user", "assistant"]
    content: str | list[dict[str, Any]] | None = None


class CallItem(msgspec.Struct):
    """A call that the model made."""

    call_id: str
    name: str
    arguments: str
    namespace: str | None = None


class ResultItem(msgspec.Struct):
    """What a call returned."""

    call_id: str
    output: str | list[dict[str, Any]]


class ThoughtItem(msgspec.Struct):
    """What the model thought before what follows."""

    summary: list[dict[str, Any]] | None = None
    content: list[dict[str, Any]] | None = None


def messages_of(items: Sequence[dict[str, Any]], before: Sequence[Message]) -> list[Message]:
    """The items as messages that follow others; raises RequestError that names the item.

    Calls join the assistant's message before them.
    """
    messages, thought = list[Message](), ""
    called = {call.id for message in before for call in message.tool_calls or ()}
    for at, item in enumerate(items):
        kind, param = item.get("type") or "message", f"input[{at}]"
        if kind == "reasoning":
            given = convert(item, ThoughtItem, param)
            thought = _text(given.content or given.summary or [], f"{param}.content")
            continue
        if kind == "function_call":
            called.add(item.get("call_id", ""))
        elif kind == "function_call_output" and item.get("call_id") not in called:
            raise RequestError(f"{item.get('call_id')!r} is the id of no call before it", param=f"{param}.call_id")
        add = ADDERS.get(kind)
        if add is None:
            raise RequestError(f"items of type {kind!r} are not supported", param=f"{param}.type")
        add(messages, item, param)
        if thought and messages[-1].role == "assistant":
            messages[-1].reasoning_content, thought = thought, ""
    return messages


def _add_message(messages: list[Message], item: dict[str, Any], param: str) -> None:
    given = convert(item, MessageItem, param)
    if given.content is None:
        raise RequestError(f"{param}.content is missing", param=f"{param}.content")
    role = "system" if given.role == "developer" else given.role
    messages.append(Message(role, _content(given.content, f"{param}.content")))


def _add_call(messages: list[Message], item: dict[str, Any], param: str) -> None:
    given = convert(item, CallItem, param)
    call = MessageToolCall(CalledFunction(joined(given.namespace, given.name), given.arguments), given.call_id)
    if messages and messages[-1].role == "assistant":
        messages[-1].tool_calls = [*(messages[-1].tool_calls or []), call]
    else:
        messages.append(Message("assistant", tool_calls=[call]))


def _add_result(messages: list[Message], item: dict[str, Any], param: str) -> None:
    given = convert(item, ResultItem, param)
    messages.append(Message("tool", _text(given.output, f"{param}.output"), tool_call_id=given.call_id))


ADDERS: dict[str, Callable[[list[Message], dict[str, Any], str], None]] = {
    "message": _add_message,
    "function_call": _add_call,
    "function_call_output": _add_result,
}


def _content(content: str | list[dict[str, Any]], param: str) -> Content:
    """One text, if there is nothing else."""
    if isinstance(content, str) or all(part.get("type") != "input_image" for part in content):
        return _text(content, param)
    parts = []
    for at, part in enumerate(content):
        if part.get("type") != "input_image":
            parts.append(ContentPart("text", _text([part], param, at)))
        elif isinstance(url := part.get("image_url"), str):
            detail = {"detail": part["detail"]} if part.get("detail") else {}
            parts.append(ContentPart("image_url", image_url={"url": url, **detail}))
        else:
            raise RequestError("an image has an image_url", param=f"{param}[{at}].image_url")
    return parts


def _text(content: str | list[dict[str, Any]], param: str, first: int = 0) -> str:
    """`first`: the index of the first part, for errors."""
    if isinstance(content, str):
        return content
    for at, part in enumerate(content, first):
        if part.get("type") not in TEXTS or not isinstance(part.get("text"), str):
            raise RequestError(f"content of type {part.get('type')!r} is not supported, only text", f"{param}[{at}]")
    return "".join(part["text"] for part in content)
