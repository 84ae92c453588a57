"""Decides how much to draft, for a round and for a stream: pure functions of the plan and of what was measured."""

import math
from dataclasses import dataclass

from common.decoding import throughput
from common.decoding.acceptance import DOUBT
from common.decoding.draft_yield import stream_draft_length
from common.decoding.estimates import Estimates
from common.decoding.policy import Plan
from common.protocol.stream_frames import LONGEST_DRAFT
from common.types import NEVER, Gate, Mode, Objective, StopRule


@dataclass(frozen=True, slots=True)
class Length:
    """Draft up to `limit` tokens, fewer where `stop` says."""

    limit: int
    stop: StopRule = NEVER


WORTH_A_DRAFT = 0.02
"""Objective cost: the least chance of being accepted that a token is drafted for; it costs only the edge's time."""

UNMEASURED_TOKENS = 6
"""Objective latency: the length of a draft that may rest on no measurement, not even on its own confidences.

Replayed answers of a real pair: 0.90 and 0.92 of the best fixed length's speed on code and prose; of 16, 0.59 on prose.
"""
WORTH_VERIFYING = 0.5
"""The least chance of being accepted that a gated draft goes on for after its first token that fails the gate.

A constant, so that what a gate asks of the cloud depends on no measured time: a calibrated cloud rate holds anywhere.
"""


def draft_length(plan: Plan, remaining: int, estimates: Estimates) -> Length:
    """How much to draft when `remaining` tokens may still be committed; a verify adds one token to its draft.

    For a lossless answer, a token is drafted while its chance of being accepted is above the number of tokens that
    would otherwise be committed in the time that its draft and verify take.
    """
    if plan.mode is Mode.CLOUD_ONLY:
        return Length(0)
    if plan.mode is Mode.ROUTE and plan.routing is not None:
        return Length(min(plan.routing.tokens, remaining))
    if plan.draft_stop is not None:
        return Length(min(plan.max_draft_tokens, remaining - plan.lossless), plan.draft_stop)
    if plan.gated:
        stop = _stop(WORTH_VERIFYING if plan.use_draft_verify else 1.0, estimates, plan.current_gate)
        return Length(min(plan.max_draft_tokens, remaining), stop)
    if not plan.lossless:
        return Length(min(plan.max_draft_tokens, remaining))
    limit = min(plan.max_draft_tokens, remaining - 1)
    if plan.objective is Objective.COST:
        return Length(limit, _stop(WORTH_A_DRAFT, estimates))
    if not estimates.verify.measured:
        return Length(min(limit, UNMEASURED_TOKENS))
    rounds = throughput.of_rounds(estimates, plan.max_draft_tokens, plan.draft_ahead)
    return Length(limit, _stop(min(0.9, _seconds_per_draft_token(estimates) * rounds.speed), estimates))


def stream_length(plan: Plan, remaining: int, in_flight_tokens: float, estimates: Estimates) -> Length:
    """How long the edge's guess at the rest of a stream should be, of which `in_flight_tokens` are on their way.

    Drafting takes the cloud no time, so a token is sent while it is likely enough for its share of a step.
    """
    if plan.draft_stop is not None:
        return Length(min(plan.max_draft_tokens, remaining - 1), plan.draft_stop)
    acceptance, cost = estimates.acceptance.prefix_acceptance, estimates.token_steps
    if not stream_draft_length(acceptance, in_flight_tokens, LONGEST_DRAFT, cost=cost):
        return Length(0)
    in_flight = round(in_flight_tokens)
    steps = throughput.of_stream(estimates, plan.max_draft_tokens).speed * estimates.step_seconds
    chance = acceptance(in_flight) * min(0.9, cost * max(1.0, steps))
    return Length(min(in_flight + plan.max_draft_tokens, LONGEST_DRAFT, remaining - 1), _stop(chance, estimates))


def _stop(chance: float, estimates: Estimates, gate: Gate | None = None) -> StopRule:
    """Where a draft's chance of being accepted falls below `chance`, by how this answer's tokens were accepted."""
    power = estimates.acceptance.power
    return StopRule(chance, power, math.exp(-DOUBT * power), gate)


def _seconds_per_draft_token(estimates: Estimates) -> float:
    """What drafting and verifying one more token takes."""
    return estimates.draft_seconds + estimates.step_seconds * estimates.token_steps
