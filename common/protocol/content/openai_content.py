"""Defines and checks a chat's messages and their parts: text, and the images and audio that only a cloud can read."""

import binascii
import re
from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct

from common.errors import RequestError, UnsupportedError
from common.protocol.openai_tools import MessageToolCall

Role = Literal["developer", "system", "user", "assistant", "tool", "function"]
"""Who speaks in a message."""
MEDIA = ("image_url", "input_audio", "audio_url", "video_url")
"""Types of parts that are not text, with the names of their fields."""
DATA_URL = re.compile(r"data:([\w.+/-]*)((?:;[\w.+-]+=[\w.+-]*)*)(;base64)?,")
BASE64 = re.compile(r"[A-Za-z0-9+/\s]*={0,2}\s*\Z")


class ContentPart(Struct, omit_defaults=True):
    """A part of a message; `type` says which of the fields counts."""

    type: str
    text: str = ""
    image_url: str | dict[str, Any] | None = None
    input_audio: dict[str, Any] | None = None
    audio_url: str | dict[str, Any] | None = None
    video_url: str | dict[str, Any] | None = None


Content = str | list[ContentPart]


class Prediction(Struct, forbid_unknown_fields=True):
    """OpenAI's predicted output: text that the answer is expected to repeat for the most part."""

    type: Literal["content"]
    content: Content

    @property
    def text(self) -> str:
        """The content as one string; raises RequestError for parts that are not text."""
        return text_of(self.content, "prediction")


class Message(Struct, omit_defaults=True):
    """One turn of a chat."""

    role: Role
    content: Content | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @property
    def text(self) -> str:
        """The content as one string; raises RequestError for parts that are not text."""
        return text_of(self.content or [], "messages")


INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "audio", "refusal", "reasoning", "reasoning_content")
"""What an assistant's message may have alone."""


def check_contents(messages: Sequence[Any]) -> None:
    """Raises RequestError for a message without a content, but for what a model may answer."""
    for at, message in enumerate(messages):
        answered = message.role == "assistant" and any(getattr(message, name, None) for name in INSTEAD_OF_CONTENT)
        if message.content is None and not answered:
            reason = "is missing: only an assistant's message may have something else, such as tool_calls"
            raise RequestError(f"messages[{at}].content {reason}", param=f"messages[{at}].content")


def text_of(content: Content, param: str) -> str:
    """The content as one string; raises RequestError for parts that are not text."""
    if isinstance(content, str):
        return content
    unsupported = next((part.type for part in content if part.type != "text"), None)
    if unsupported is not None:
        raise UnsupportedError(f"content of type {unsupported!r} is not supported, only text", param=param)
    return "".join(part.text for part in content)


def media_in(contents: Sequence[Content | None]) -> str | None:
    """The type of the first part that is not text; None if there is none. Raises RequestError for a wrong part."""
    found = None
    for at, content in enumerate(contents):
        for place, part in enumerate(content if isinstance(content, list) else ()):
            if part.type in MEDIA:
                _check(part, f"messages[{at}].content[{place}].{part.type}")
                found = found or part.type
    return found


def without_media(content: Content | None) -> Content | None:
    """The content with a word in place of each part that is not text."""
    if not isinstance(content, list):
        return content
    return [ContentPart("text", f"[{part.type}]") if part.type in MEDIA else part for part in content]


def _check(part: ContentPart, param: str) -> None:
    """What a cloud would find only after it has been sent all of it: data that is none."""
    value = getattr(part, part.type)
    if part.type == "input_audio":
        data = value.get("data") if value else None
        if not isinstance(data, str) or not _is_base64(data):
            raise RequestError("audio is an object with its data in base64, and its format", param=param)
        return
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str) or not url:
        raise RequestError(f"{part.type} is a URL, or an object with one", param=param)
    if not url.startswith("data:"):
        return
    head = DATA_URL.match(url)
    kind = part.type.removesuffix("_url")
    if head is None or not head[1].startswith(f"{kind}/") or not head[3] or not _is_base64(url[head.end() :]):
        raise RequestError(f"this is no {kind} in base64: data:{kind}/TYPE;base64,DATA", param=param)


def _is_base64(data: str) -> bool:
    try:
        return bool(BASE64.match(data)) and bool(binascii.a2b_base64(data))
    except binascii.Error:
        return False
