"""The edge's whole OpenAI responses and its events as structs, for its API document and for clients that check them."""

from typing import Any

from msgspec import UNSET, Struct, UnsetType

from common.answer_report import Collaboration
from common.protocol.openai_responses import Usage
from common.protocol.openai_tools import MessageToolCall


class ReplyMessage(Struct):
    """The turn that answers a chat."""

    role: str
    content: str | None
    tool_calls: list[MessageToolCall] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    """What the model thought before it answered; `reasoning` is the same."""
    reasoning: str | UnsetType = UNSET


class ChatAnswer(Struct, kw_only=True):
    """One answer to a chat."""

    index: int
    message: ReplyMessage
    logprobs: dict[str, Any] | None = None
    finish_reason: str


class CompletionChoice(Struct, kw_only=True):
    """One answer to a text; in an event a part of it, and only the last part has a reason."""

    index: int
    text: str
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None


class ChatCompletion(Struct, kw_only=True):
    """Response of POST /v1/chat/completions."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatAnswer]
    usage: Usage
    collaboration: Collaboration
    timings: dict[str, float] | None = None
    """As llama-server's, if `timings_per_token` asks for them."""


class TextCompletion(Struct, kw_only=True):
    """Response of POST /v1/completions, and an event of its stream: usage and report are in the last one."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    collaboration: Collaboration | None = None
    timings: dict[str, float] | None = None
    """As llama-server's, if `timings_per_token` asks for them."""


class ModelCard(Struct, kw_only=True):
    """A model that requests can name."""

    id: str
    object: str
    owned_by: str
    created: int
    max_model_len: int | None = None


class ModelList(Struct):
    """Response of GET /v1/models."""

    object: str
    data: list[ModelCard]


class TokenizerNames(Struct):
    """Response of GET /tokenizer_info."""

    bos_token: str | None
    eos_token: str | None
    chat_template: str | None
