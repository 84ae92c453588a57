"""The frames of `GET /split`, typed: hidden states and questions go up, tokens come down. Knows no socket, no model.

MessagePack in binary frames. One connection carries many sessions; a session is one answer, whose positions count from
the prompt's first token. Nothing is confirmed: an edge sends on and asks, and a 409 tells it what is missing.
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from common.protocol.stream_frames import Count
from common.types import ErrorObject, Sampling

MOST_STATES = 2048
"""Positions in one frame of states; a longer piece is sent in several."""

SessionId = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
"""The hexadecimal digits of a random UUID, chosen by the edge."""


class StateEncoding(StrEnum):
    """How hidden states travel; always little-endian, row after row."""

    FP16 = "fp16"
    INT8 = "int8"
    """Each row divided by a scale of its own, a float32 beside it."""
    FP32 = "fp32"


class OpenFrame(Struct, tag="open", kw_only=True, forbid_unknown_fields=True):
    """Begins a session, or goes on with one that the cloud still holds; nothing answers it.

    `fingerprint`: of the model that was split, as its manifest says it.
    """

    session: SessionId
    fingerprint: Annotated[str, Meta(max_length=64)]
    kind: StateEncoding


class StatesFrame(Struct, tag="states", kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The hidden states of positions `start` ... `start + count - 1`; those that the cloud has had it ignores.

    `data`: `count` rows as the session's kind says, or as `kind` says where that cannot hold them. `scales`: a float32
    for each row of int8.
    """

    session: SessionId
    start: Count
    count: Annotated[int, Meta(ge=1, le=MOST_STATES)]
    data: bytes
    scales: bytes = b""
    kind: StateEncoding | None = None


class AskFrame(Struct, tag="ask", kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Wants the token after positions 0 ... `position` - 1; `id` is the session's own number for this question."""

    session: SessionId
    id: Count
    position: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    sampling: Sampling = Sampling()


class CloseFrame(Struct, tag="close", kw_only=True, forbid_unknown_fields=True):
    """Ends a session; the cloud forgets it, and ends a question of it that is under way."""

    session: SessionId


class TokenFrame(Struct, tag="token", kw_only=True):
    """The answer to an Ask, with natural `logprob` and `confidence` (its probability) under the unmodified softmax.

    `cloud_ms`: milliseconds that the cloud took. `computed`: positions that the tail computed for it; `cached`: those
    whose keys and values it still had.
    """

    session: str
    id: int
    token_id: int
    confidence: float
    logprob: float
    cloud_ms: float
    computed: int
    cached: int


class FaultFrame(Struct, tag="fault", kw_only=True, omit_defaults=True):
    """What went wrong with the question `id` of a session, with the session, or (no session) with the connection.

    409 `states_missing`: the cloud holds the positions before `held` only; from there on they are to be sent again.
    After any other 4xx the cloud has dropped the session, 429 apart; after 5xx it may be asked again.
    """

    status: int
    error: ErrorObject
    session: str | None = None
    id: int | None = None
    held: int | None = None


EdgeFrame = OpenFrame | StatesFrame | AskFrame | CloseFrame
CloudFrame = TokenFrame | FaultFrame
