"""The values that parts exchange: results of drafting and verifying, and bodies of /draft and /verify."""

from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Struct

from common.answer_report import Collaboration as Collaboration
from common.answer_report import InferenceResult as InferenceResult
from common.enums import ConfidenceStrategy as ConfidenceStrategy
from common.enums import DraftSource as DraftSource
from common.enums import FinishReason as FinishReason
from common.enums import Mode as Mode
from common.enums import Objective as Objective
from common.enums import Provenance as Provenance
from common.enums import StateEncoding as StateEncoding
from common.enums import VerificationMode as VerificationMode
from common.grammar.spec import GrammarSpec as GrammarSpec
from common.sampling import GREEDY as GREEDY
from common.sampling import Sampling as Sampling
from common.sampling import Seed as Seed

Priority = Annotated[int, msgspec.Meta(ge=-(2**31) + 1, le=2**31 - 1)]
"""As vLLM has it: lower is earlier; above 0 it is that of a batch, which waits until nothing else does."""


class TokenProb(Struct, frozen=True):
    """One drafted token: probability under the edge model, its natural logarithm, and confidence."""

    token_id: int
    token: str
    prob: float
    logprob: float
    confidence: float | None = None


class TokenLogprob(Struct, frozen=True):
    """A token's natural log probability under the unmodified softmax; `top`: the likeliest tokens, likeliest first."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class Draft(Struct, frozen=True):
    """What a drafter returns: tokens, their probabilities and confidences, lists of equal length.

    `finished`: the last token ends the answer. `logprobs`: one for each token, if requested. `sources`: which drafter
    proposed each token; None: the model all.
    """

    token_ids: list[int]
    probs: list[float]
    confidences: list[float]
    finished: bool
    latency_ms: float
    logprobs: list[TokenLogprob] | None = None
    sources: list[DraftSource] | None = None
    reused: int = 0
    """Tokens before the draft whose KV was found."""

    def part(self, begin: int, limit: int) -> "Draft":
        """Up to `limit` of the tokens from place `begin` on."""
        end = begin + limit
        return Draft(
            self.token_ids[begin:end],
            self.probs[begin:end],
            self.confidences[begin:end],
            self.finished and end >= len(self.token_ids),
            self.latency_ms,
            logprobs=None if self.logprobs is None else self.logprobs[begin:end],
            sources=None if self.sources is None else self.sources[begin:end],
            reused=self.reused,
        )

    def joined(self, rest: "Draft") -> "Draft":
        """This draft with `rest` after it, without log probabilities."""
        return Draft(
            self.token_ids + rest.token_ids,
            self.probs + rest.probs,
            self.confidences + rest.confidences,
            rest.finished,
            self.latency_ms + rest.latency_ms,
            sources=self.drafters + rest.drafters,
            reused=rest.reused,
        )

    @property
    def drafters(self) -> list[DraftSource]:
        """Which drafter proposed each token."""
        return self.sources if self.sources is not None else [DraftSource.MODEL] * len(self.token_ids)

    @property
    def of_model(self) -> "Draft":
        """The model's tokens alone, which cost the time that the draft took: those after what was looked up."""
        return self.part(self.drafters.index(DraftSource.MODEL), len(self.token_ids)) if self.drawn else NO_DRAFT

    @property
    def drawn(self) -> int:
        """How many of the tokens the model drew."""
        return self.drafters.count(DraftSource.MODEL)


NO_DRAFT = Draft([], [], [], False, 0.0)


@dataclass(frozen=True, slots=True)
class Gate:
    """F1: a token is confident if its confidence and the draft's product up to it reach their thresholds (0 to 1)."""

    threshold: float = 0.8
    product_threshold: float = 0.3


class StopRule(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """When a draft ends early: at the token that brings the chance that all of it is accepted below `below`, in [0, 1].

    A token of confidence c counts as accepted with probability `ceiling` * c ** `power`. Tokens before the first one
    that does not pass the `gate` need no verdict, and are not counted.
    """

    below: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    power: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    ceiling: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    gate: Gate | None = None


NEVER = StopRule()
"""Drafts end by their length alone."""


class Verdict(Struct, frozen=True):
    """What a verifier returns: the cloud's tokens, of which the first `accepted` are those of the draft.

    One token follows the accepted ones: recovered if a draft token was rejected, else bonus. After an empty draft there
    are up to `max_tokens`, generated by the cloud alone. None follows where an accepted token ends the answer.
    `finish_reason`: null while the answer may continue; a full context ends it, too. `latency_ms`: from request to
    response; `cloud_ms`: the part of it that the cloud reports as its own.
    """

    token_ids: list[int]
    accepted: int
    finish_reason: FinishReason | None
    latency_ms: float
    logprobs: list[TokenLogprob] | None = None
    cloud_ms: float = 0.0


class DraftRequest(Struct, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /draft. `prompt_token_ids` take precedence over the text in `prompt`.

    The draft also ends where `stop` says.
    """

    prompt: str = ""
    prompt_token_ids: list[int] | None = None
    max_tokens: int = 8
    sampling: Sampling = GREEDY
    stop: StopRule = NEVER


class DraftResponse(Struct, kw_only=True):
    """Response of POST /draft; `draft_tokens` are the texts of `draft_token_ids`."""

    draft_tokens: list[str]
    draft_token_ids: list[int]
    token_probs: list[TokenProb]
    prompt_tokens: int
    finished: bool
    latency_ms: float


class VerifyRequest(Struct, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /verify.

    The committed tokens are the first `prefix_length` that both sides hold for `session` (their hash in
    `prefix_hash`, see common/protocol/prefix_hash.py), then `new_token_ids`. Without a session, the text `prompt`
    replaces both.
    A round sent again with the same `idempotency_key` (any text, unique within its session) gets the same response.
    `logprobs`: for each token its own and this many of the likeliest, 0 to 20. `vocabulary`: the fingerprint
    (common/protocol/vocabulary.py) of the ids' vocabulary; the cloud refuses another one than its own. `tenant`: a name
    for the edge's client; what the cloud keeps for one tenant is not used for another. `priority`: above 0, a batch.
    """

    session: str = ""
    prefix_length: int = 0
    prefix_hash: str = ""
    new_token_ids: list[int] = []
    prompt: str = ""
    draft_token_ids: list[int] = []
    draft_tokens: list[str] = []
    max_tokens: int = 1
    sampling: Sampling = GREEDY
    stop: list[str] = []
    stop_token_ids: list[int] = []
    logprobs: int | None = None
    use_kv_cache: bool = True
    idempotency_key: str = ""
    vocabulary: str = ""
    tenant: Annotated[str, msgspec.Meta(max_length=64)] = ""
    priority: Priority = 0


class VerifyResponse(Struct, kw_only=True, omit_defaults=True):
    """Response of POST /verify: the tokens to commit; `correction_position`: the first rejected draft token.

    `acceptance_rate`: accepted over drafted, 1 for an empty draft. `finish_reason`: null while the answer may continue.
    `stop_reason`: the stop string that the last token completed. `form`: how the cloud verified, resident or stateless.
    """

    token_ids: list[int]
    accepted: int
    drafted: int
    acceptance_rate: float = 1.0
    correction_position: int | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | None = None
    logprobs: list[TokenLogprob] | None = None
    form: str = "stateless"
    latency_ms: float = 0.0


class VerifyBatchRequest(Struct, forbid_unknown_fields=True):
    """Body of POST /verify/batch: rounds of different sessions, verified together."""

    requests: list[VerifyRequest]


class ErrorObject(Struct, omit_defaults=True):
    """OpenAI's error object."""

    message: str
    type: str = "server_error"
    param: str | None = None
    code: str | None = None


class VerifyBatchItem(Struct, omit_defaults=True):
    """The outcome of one round of a batch: a response or an error."""

    response: VerifyResponse | None = None
    error: ErrorObject | None = None


class VerifyBatchResponse(Struct):
    """Response of POST /verify/batch, in the order of its requests."""

    responses: list[VerifyBatchItem]
