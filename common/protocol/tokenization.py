"""Defines the messages of POST /tokenize and /detokenize, with vLLM's field names."""

from typing import Any

from msgspec import Struct

from common.protocol.openai import Message

LONGEST_TOKEN = 256
"""Bytes: no vocabulary has a longer token, so a text of more bytes for each token of the context cannot fit."""


class TokenizeRequest(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Body of POST /tokenize: `prompt` as plain text, or `messages` for the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    """None: true; what the model begins a prompt with."""
    add_generation_prompt: bool | None = None
    """None: true."""
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeReply(Struct, kw_only=True):
    """Reply to POST /tokenize."""

    tokens: list[int]
    count: int
    """The number of `tokens`."""
    max_model_len: int
    """The model's context length in tokens."""


class DetokenizeRequest(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: list[int]


class DetokenizeReply(Struct):
    """Reply to POST /detokenize: `prompt` is the text of the tokens."""

    prompt: str
