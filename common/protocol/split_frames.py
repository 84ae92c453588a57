"""Defines the frames of `GET /split`: the edge sends hidden states and asks for tokens, the cloud answers.

Frames are MessagePack in binary WebSocket messages. One connection carries many sessions. A session is one answer; its
positions count from the prompt's first token, 0. The cloud acknowledges nothing: it reports missing states by a 409.
What a session holds never changes but by growing: an answer that begins as an earlier one did is a new session, which
takes over the first positions of the earlier one.
"""

from typing import Annotated

from msgspec import Meta, Struct, field

from common.protocol.stream_frames import Count
from common.types import ErrorObject, Sampling, StateEncoding

MAX_STATES = 2048
"""Positions in one states frame; more are sent in several frames."""

MAX_TOP = 20
"""Likeliest tokens in one answer."""

SessionId = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
"""The 32 hexadecimal digits of a random UUID, chosen by the edge."""


class OpenFrame(Struct, tag="open", kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Opens a session, or resumes one that the cloud still holds. Sent by the edge; the cloud does not reply.

    With a `parent` a session that the cloud does not hold begins with up to the first `keep` positions of that one,
    which ends. If the cloud does not hold that one either, it begins with none.
    """

    session: SessionId
    fingerprint: Annotated[str, Meta(max_length=64)]
    """Of the split model, from its manifest."""
    encoding: StateEncoding = field(name="kind")
    """Of the session's states; `kind` on the wire."""
    parent: SessionId | None = None
    keep: Count = 0


class StatesFrame(Struct, tag="states", kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The hidden states of positions `start` ... `start + count - 1`, sent by the edge.

    The cloud ignores positions that it already has.
    """

    session: SessionId
    start: Count
    count: Annotated[int, Meta(ge=1, le=MAX_STATES)]
    data: bytes
    """`count` rows; see common/protocol/hidden_states.py."""
    scales: bytes = b""
    """int8 only: one float32 for each row."""
    encoding: StateEncoding | None = field(name="kind", default=None)
    """Where it differs from the session's, because float16 would overflow; `kind` on the wire."""


class AskFrame(Struct, tag="ask", kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Asks for the token after positions 0 ... `position` - 1; sent by the edge, answered by a token or a fault."""

    session: SessionId
    id: Count
    """Number of the question within its session."""
    position: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    sampling: Sampling = Sampling()
    top: Annotated[int, Meta(ge=0, le=MAX_TOP)] = 0
    """How many of the likeliest tokens the answer is to name."""


class CloseFrame(Struct, tag="close", kw_only=True, forbid_unknown_fields=True):
    """Ends a session, sent by the edge: the cloud drops its states and cancels a pending question."""

    session: SessionId


class TokenFrame(Struct, tag="token", kw_only=True, omit_defaults=True):
    """The answer to an AskFrame, sent by the cloud."""

    session: str
    id: int
    """The `id` of the question."""
    token_id: int
    confidence: float
    """The token's probability under the unmodified softmax (temperature 1), in [0, 1]."""
    logprob: float
    """The natural logarithm of `confidence`."""
    cloud_ms: float
    """Milliseconds that the cloud took."""
    computed: int
    """Positions that the tail computed for this token."""
    cached: int
    """Positions whose keys and values the tail still had."""
    top: list[tuple[int, float]] = []
    """The likeliest tokens and their natural log probabilities, likeliest first, if the question asked for them."""


class FaultFrame(Struct, tag="fault", kw_only=True, omit_defaults=True):
    """A failure, sent by the cloud: of a question, of a session (no `id`) or of the connection (no `session`).

    After 409 `states_missing` the edge sends the states again from position `held` on. After any other 4xx except 429
    the cloud has dropped the session; after a 5xx the edge may ask again.
    """

    status: int
    """The HTTP status that the failure stands for."""
    error: ErrorObject
    session: str | None = None
    id: int | None = None
    held: int | None = None
    """Only with `states_missing`: the cloud holds the positions before this one."""


EdgeFrame = OpenFrame | StatesFrame | AskFrame | CloseFrame
CloudFrame = TokenFrame | FaultFrame
