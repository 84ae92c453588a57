"""The frames of `GET /stream`, typed: a start and drafts go up, tokens and one end come down. Knows no socket.

MessagePack in binary frames, JSON in text frames; a connection speaks the one that its start frame speaks.
"""

from typing import Annotated

from msgspec import Meta, Struct

from common.types import GREEDY, Sampling, TokenLogprob

LONGEST_DRAFT = 128
"""Ids in one draft frame: what the cloud generates while a draft is on its way, and what may be verified after that."""

LARGEST = 2**31 - 1
Count = Annotated[int, Meta(ge=0, le=LARGEST)]


class StartFrame(Struct, tag="start", kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The first frame up: continue `token_ids` by up to `max_tokens`.

    The answer ends behind a token of `stop_token_ids` or the token that completes a string of `stop`. `logprobs`: for
    each token its own and this many of the likeliest. `vocabulary`: as in VerifyRequest. A `seed` in `sampling` repeats
    an answer only if no drafts come. `keep`: behind the end the connection stays, and may have another
    start. `request_id`: of the request that the answer is for; "": the connection's own.
    """

    token_ids: Annotated[list[int], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=LARGEST)]
    sampling: Sampling = GREEDY
    stop: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=16)] = []
    stop_token_ids: Annotated[list[int], Meta(max_length=64)] = []
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    use_kv_cache: bool = True
    vocabulary: str = ""
    keep: bool = False
    request_id: Annotated[str, Meta(max_length=128)] = ""


class DraftFrame(Struct, tag="draft", kw_only=True, forbid_unknown_fields=True):
    """What may follow the first `position` tokens of prompt and answer, counted from the prompt's beginning."""

    position: Count
    token_ids: Annotated[list[int], Meta(min_length=1, max_length=LONGEST_DRAFT)]


class TokensFrame(Struct, tag="tokens", kw_only=True, omit_defaults=True):
    """The tokens from `position` on, of which `accepted` had been drafted."""

    position: int
    token_ids: list[int]
    accepted: int = 0
    logprobs: list[TokenLogprob] | None = None


class EndFrame(Struct, tag="end", kw_only=True, omit_defaults=True):
    """The last frame down: why the answer ends (`stop` or `length`) and what came of the drafts.

    `steps`: engine steps that drew tokens. `drafted`, `accepted`: draft tokens verified, and accepted. `dropped`:
    drafts of which nothing was verified, because the answer had passed or contradicted them.
    """

    finish_reason: str
    steps: int
    drafted: int = 0
    accepted: int = 0
    dropped: int = 0


class ErrorDetail(Struct, kw_only=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorFrame(Struct, tag="error", kw_only=True):
    """A failure in OpenAI's shape; the server closes the connection behind it."""

    error: ErrorDetail


ClientFrame = StartFrame | DraftFrame
ServerFrame = TokensFrame | EndFrame | ErrorFrame
