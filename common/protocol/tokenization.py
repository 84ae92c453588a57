"""Defines the messages of POST /tokenize and /detokenize, with vLLM's field names."""

from msgspec import Struct

from common.protocol.openai import Message


class TokenizeRequest(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Body of POST /tokenize: `prompt` as plain text, or `messages` for the chat template."""

    model: str = ""
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class TokenizeReply(Struct, kw_only=True):
    """Reply to POST /tokenize."""

    tokens: list[int]
    count: int
    """The number of `tokens`."""
    max_model_len: int
    """The model's context length in tokens."""


class DetokenizeRequest(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Body of POST /detokenize."""

    model: str = ""
    tokens: list[int]


class DetokenizeReply(Struct):
    """Reply to POST /detokenize: `prompt` is the text of the tokens."""

    prompt: str
