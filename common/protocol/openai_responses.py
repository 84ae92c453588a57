"""Defines parts of the edge's OpenAI responses: usage, stream chunks, tokens with their source."""

from typing import Any

import msgspec
from msgspec import Struct

from common.types import Collaboration, Provenance


class SourcedToken(Struct):
    """One token of an answer and its source, sent by the edge if `collaboration.tokens` asks for it."""

    token_id: int
    text: str
    source: Provenance
    confidence: float | None
    """Of the model that drew the token, in [0, 1]; null where it is not known."""


class Usage(Struct):
    """Token counts of one response; `total_tokens` is the sum of the others."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Delta(Struct):
    """The text that a chunk adds to its choice."""

    content: str = ""


class ChunkChoice(Struct):
    """The part of a chunk that belongs to one answer."""

    delta: Delta
    provenance: Provenance | None = None
    """The source of the chunk's tokens."""
    finish_reason: str | None = None
    """`stop` or `length` in the last chunk of an answer, null before."""


class ChatChunk(Struct, kw_only=True):
    """One event of a streamed chat answer, sent by the edge: the fields that the project's clients read."""

    choices: list[ChunkChoice] = []
    usage: Usage | None = None
    """In the last event, if `stream_options.include_usage` asks for it."""
    collaboration: Collaboration | None = None
    """In the last event: the report on how the answer was generated."""


def dump(value: object) -> Any:
    """A struct as plain JSON types, for use inside a response."""
    return msgspec.to_builtins(value)
