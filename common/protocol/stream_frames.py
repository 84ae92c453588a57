"""Defines the frames of `GET /stream`: start and drafts from the edge, tokens and an end from the cloud.

Frames are MessagePack in binary WebSocket messages or JSON in text messages, as the start frame is.
"""

from typing import Annotated

from msgspec import Meta, Struct

from common.protocol.codec import REQUEST_ID_PATTERN
from common.tracing.context import TRACEPARENT_PATTERN
from common.types import GREEDY, FinishReason, Priority, Sampling, TokenLogprob

LONGEST_DRAFT = 128
"""Token ids in one draft frame: those the cloud generates while the draft travels, and those left to verify then."""

INT32_MAX = 2**31 - 1
Count = Annotated[int, Meta(ge=0, le=INT32_MAX)]


class StartFrame(Struct, tag="start", kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The first frame of an answer, sent by the edge: continue `token_ids` by up to `max_tokens`."""

    token_ids: Annotated[list[int], Meta(min_length=1)]
    """The prompt, and what is committed of the answer."""
    max_tokens: Annotated[int, Meta(ge=1, le=INT32_MAX)]
    sampling: Sampling = GREEDY
    """A `seed` reproduces an answer only if no drafts are sent."""
    stop: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=16)] = []
    """The answer ends after the token that completes one of these strings."""
    stop_token_ids: Annotated[list[int], Meta(max_length=64)] = []
    """The answer ends after one of these tokens."""
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    """Log probabilities for each token: its own and those of this many likeliest tokens; None: none."""
    use_kv_cache: bool = True
    vocabulary: str = ""
    """The fingerprint of the ids' vocabulary, as in VerifyRequest."""
    tenant: Annotated[str, Meta(max_length=64)] = ""
    """A name for the edge's client, as in VerifyRequest."""
    priority: Priority = 0
    """As in VerifyRequest."""
    keep: bool = False
    """Whether the connection stays open after the end for another start frame."""
    request_id: Annotated[str, Meta(pattern=REQUEST_ID_PATTERN)] = ""
    """The id of the request that the answer is for; empty: the connection's own."""
    traceparent: Annotated[str, Meta(pattern=TRACEPARENT_PATTERN)] | None = None
    """The W3C trace context of the edge's span for the answer; null: the connection's own."""


class DraftFrame(Struct, tag="draft", kw_only=True, forbid_unknown_fields=True):
    """Draft tokens, sent by the edge: they may follow the first `position` tokens of prompt and answer."""

    position: Count
    token_ids: Annotated[list[int], Meta(min_length=1, max_length=LONGEST_DRAFT)]


class TokensFrame(Struct, tag="tokens", kw_only=True, omit_defaults=True):
    """Tokens of the answer, sent by the cloud."""

    position: int
    """Of the first token, counted from the prompt's first token."""
    token_ids: list[int]
    accepted: int = 0
    """How many of the tokens, from the first on, were drafted by the edge."""
    logprobs: list[TokenLogprob] | None = None
    """One for each token, if the start frame asked for them."""
    finish_reason: FinishReason | None = None
    """Why the answer ends with these tokens, should the end frame be lost. None: it goes on."""


class EndFrame(Struct, tag="end", kw_only=True, omit_defaults=True):
    """The last frame of an answer, sent by the cloud."""

    finish_reason: FinishReason
    """`length` also at the end of the cloud's context."""
    steps: int
    """Engine steps that drew tokens."""
    drafted: int = 0
    """Draft tokens that were verified."""
    accepted: int = 0
    """Draft tokens that were accepted."""
    dropped: int = 0
    """Draft frames of which no token was verified, because the answer had passed or contradicted them."""
    cached_tokens: int = 0
    """Tokens of the start whose KV was found."""
    cloud_ms: float = 0.0
    """From the answer's first tokens to its last ones in the cloud, in milliseconds; 0: unknown."""


class ErrorDetail(Struct, kw_only=True):
    """OpenAI's error object, with all of its fields."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorFrame(Struct, tag="error", kw_only=True):
    """A failure, sent by the cloud, which then closes the connection."""

    error: ErrorDetail


ClientFrame = StartFrame | DraftFrame
ServerFrame = TokensFrame | EndFrame | ErrorFrame
