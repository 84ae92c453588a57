"""Converts the turns of a Messages request, made of content blocks, to messages of a chat."""

import json
from collections.abc import Sequence
from typing import Any

from common.errors import RequestError
from common.protocol.content.openai_content import Content, ContentPart, Role
from common.protocol.openai import Message
from common.protocol.openai_tools import CalledFunction, MessageToolCall

Block = dict[str, Any]


def messages_of(turns: Sequence[dict[str, Any]]) -> list[Message]:
    """The turns as messages; raises RequestError that names the block. Results become messages of their own."""
    messages, called = list[Message](), set[str]()
    for at, turn in enumerate(turns):
        param, content = f"messages[{at}].content", turn.get("content")
        if not isinstance(content, str | list) or not all(isinstance(one, str | dict) for one in content):
            raise RequestError("content is text or a list of blocks", param=param)
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if turn.get("role") == "assistant":
            message = _assistant(blocks, param)
            called |= {call.id for call in message.tool_calls or ()}
            messages.append(message)
        elif turn.get("role") in ("user", "system"):
            messages += _user(turn["role"], blocks, called, param)
        else:
            reason = f"unknown role {turn.get('role')!r}; allowed: user, assistant, system"
            raise RequestError(reason, param=f"messages[{at}].role")
    return messages


def _assistant(blocks: Sequence[Block], param: str) -> Message:
    texts, thoughts, calls = list[str](), list[str](), list[MessageToolCall]()
    for at, block in enumerate(blocks):
        kind, place = block.get("type"), f"{param}[{at}]"
        if kind == "text":
            texts.append(_string(block, "text", place))
        elif kind == "thinking":
            thoughts.append(_string(block, "thinking", place))
        elif kind == "tool_use":
            if not isinstance(block.get("input"), dict):
                raise RequestError("the input of a call is an object", param=f"{place}.input")
            function = CalledFunction(_string(block, "name", place), json.dumps(block["input"], ensure_ascii=False))
            calls.append(MessageToolCall(function, _string(block, "id", place)))
        elif kind != "redacted_thinking":
            raise RequestError(f"content of type {kind!r} is not supported here", param=f"{place}.type")
    text = "".join(texts)
    return Message(
        "assistant",
        text or (None if calls else ""),
        tool_calls=calls or None,
        reasoning_content="".join(thoughts) or None,
    )


def _user(role: Role, blocks: Sequence[Block], called: set[str], param: str) -> list[Message]:
    results, parts = list[Message](), list[ContentPart]()
    for at, block in enumerate(blocks):
        kind, place = block.get("type"), f"{param}[{at}]"
        if kind == "text":
            parts.append(ContentPart("text", _string(block, "text", place)))
        elif kind == "image":
            parts.append(ContentPart("image_url", image_url={"url": _image(block, place)}))
        elif kind == "tool_result":
            id = _string(block, "tool_use_id", place)
            if id not in called:
                raise RequestError(f"{id!r} is the id of no call before it", param=f"{place}.tool_use_id")
            results.append(Message("tool", text_of(block.get("content"), f"{place}.content"), tool_call_id=id))
        else:
            raise RequestError(f"content of type {kind!r} is not supported here", param=f"{place}.type")
    return [*results, *([Message(role, _content(parts))] if parts or not results else [])]


def _content(parts: Sequence[ContentPart]) -> Content:
    """One text, if there is nothing else."""
    return list(parts) if any(part.type != "text" for part in parts) else "\n\n".join(part.text for part in parts)


def _image(block: Block, param: str) -> str:
    """The image's URL, or its data as one."""
    source = block.get("source")
    if not isinstance(source, dict):
        raise RequestError("an image has a source", param=f"{param}.source")
    if source.get("type") == "url":
        return _string(source, "url", f"{param}.source")
    if source.get("type") != "base64":
        raise RequestError("the source of an image is a url or base64", param=f"{param}.source.type")
    kind = _string(source, "media_type", f"{param}.source")
    return f"data:{kind};base64,{_string(source, 'data', f'{param}.source')}"


def text_of(content: Any, param: str) -> str:
    """Text, or the text of a list of blocks; nothing is empty. Raises RequestError for other blocks."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise RequestError("content is text or a list of blocks", param=param)
    for at, block in enumerate(content):
        if not isinstance(block, dict) or block.get("type") != "text":
            raise RequestError("content other than text is not supported here", param=f"{param}[{at}]")
    return "\n\n".join(_string(block, "text", f"{param}[{at}]") for at, block in enumerate(content))


def _string(block: Block, key: str, param: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        raise RequestError(f"{key} must be text", param=f"{param}.{key}")
    return value
