"""Defines parts of the edge's OpenAI responses: usage, stream chunks, tokens with their source."""

from typing import Any

import msgspec
from msgspec import Struct

from common.protocol.openai_tools import CalledFunction
from common.types import Collaboration, DraftSource, Provenance


class SourcedToken(Struct):
    """One token of an answer and its source, sent by the edge if `collaboration.tokens` asks for it."""

    token_id: int
    text: str
    source: Provenance
    confidence: float | None
    """Of the drafter or model that the token comes from, in [0, 1]; null where it is not known."""
    drafter: DraftSource | None = None
    """Who proposed the token, if the cloud accepted it."""
    round: int | None = None
    """The round or stream of a cloud that verified or drew it, counted from 1; null: the edge asked none."""
    exit: str | None = None
    """The exit of a split model that gave it, named by the layers before it."""


class SourcedTokens(Struct):
    """The tokens of a chunk or of a whole answer."""

    tokens: list[SourcedToken] = []

    @property
    def confidences(self) -> list[float]:
        """Of those that have one."""
        return [token.confidence for token in self.tokens if token.confidence is not None]


class PromptTokensDetails(Struct):
    cached_tokens: int
    """Those whose KV was found."""


class CompletionTokensDetails(Struct):
    reasoning_tokens: int = 0
    """Those of thoughts."""
    accepted_prediction_tokens: int = 0
    """Those of the request's `prediction` that are in the answer."""
    rejected_prediction_tokens: int = 0
    """Those that are not."""


class Usage(Struct, omit_defaults=True):
    """Token counts of one response; `total_tokens` is the sum of the others."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None
    """Of a chat."""


class CallDelta(Struct):
    """A tool call in a chunk, complete; `index` counts the answer's calls."""

    index: int
    function: CalledFunction
    id: str
    type: str = "function"


class Delta(Struct):
    """What a chunk adds to its choice: text, thoughts, tool calls."""

    content: str = ""
    reasoning_content: str = ""
    """`reasoning` is the same."""
    tool_calls: list[CallDelta] = []


class ChunkChoice(Struct):
    """The part of a chunk that belongs to one answer."""

    delta: Delta
    provenance: Provenance | None = None
    """The source of the chunk's tokens."""
    finish_reason: str | None = None
    """`stop` or `length` in the last chunk of an answer, null before."""
    collaboration: SourcedTokens | None = None
    """If `collaboration.tokens` asks for it."""

    @property
    def confidences(self) -> list[float]:
        """Of those tokens of the chunk that have one."""
        return [] if self.collaboration is None else self.collaboration.confidences


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
