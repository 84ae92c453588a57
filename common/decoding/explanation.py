"""What the policy would do for an answer that begins now, why, and the figures that it rests on: for people."""

from dataclasses import replace

from msgspec import Struct

from common.decoding.acceptance import UNMEASURED, Acceptance
from common.decoding.drafters.draft_length import draft_length
from common.decoding.estimates import Estimates
from common.decoding.policy import Plan, expected_speed, explained_mode
from common.types import Mode, VerificationMode

LONG_ANSWER = 1000
"""Tokens that the answer may still have: so many that they limit no draft."""


class Explanation(Struct, kw_only=True):
    """The policy for one plan. Speeds are expected tokens per second; they and times are missing until measured."""

    way: str | None
    """The verification mode; null: the cloud takes no part."""
    because: str
    draft_tokens: int
    """The longest draft."""
    draft_above: float
    """A draft goes on while the chance that all of it is accepted is above this."""
    tokens_per_second: dict[str, float]
    """By verification mode."""


class PolicyView(Struct, kw_only=True):
    """Of the server's own plan, and of a lossless answer; and what both rest on."""

    default: Explanation
    lossless: Explanation
    round_trip_ms: float | None
    draft_token_ms: float | None
    """Drafting a token."""
    step_ms: float | None
    """A step of the cloud without drafts."""
    acceptance: list[float | None]
    """By place in a draft: how often the cloud has accepted the token lately, if all before it were; null: unknown."""


def policy_view(plan: Plan, estimates: Estimates) -> PolicyView:
    """What `plan`, the server's own, means now."""
    lossless = replace(plan, mode=Mode.COLLABORATIVE, use_draft_verify=True, use_confidence_check=False)
    measured, acceptance = estimates.verify.measured, estimates.acceptance
    assert isinstance(acceptance, Acceptance), "the estimates of all answers"
    return PolicyView(
        default=_explanation(plan, estimates),
        lossless=_explanation(lossless, estimates),
        round_trip_ms=estimates.round_trip * 1e3 if estimates.network.measured else None,
        draft_token_ms=None if estimates.draft.value is None else estimates.draft.value * 1e3,
        step_ms=estimates.step_seconds * 1e3 if measured else None,
        acceptance=[None if chance == UNMEASURED else chance for chance in acceptance.chances],
    )


def _explanation(plan: Plan, estimates: Estimates) -> Explanation:
    modes = (VerificationMode.ROUNDS, VerificationMode.CONTINUOUS) if plan.lossless and plan.uses_edge else ()
    length = draft_length(plan, LONG_ANSWER, estimates)
    mode = explained_mode(plan, estimates) if plan.asks_cloud and plan.mode is not Mode.ROUTE else None
    return Explanation(
        way=mode.mode.value if mode else None,
        because=mode.because if mode else "the edge answers alone" if not plan.asks_cloud else "a router decides",
        draft_tokens=length.limit,
        draft_above=length.stop.below,
        tokens_per_second={mode.value: expected_speed(mode, plan, estimates) for mode in modes}
        if estimates.verify.measured
        else {},
    )
