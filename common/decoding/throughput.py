"""Expected throughput of each verification mode, from the estimates of network, edge and cloud."""

from dataclasses import dataclass

from common.decoding.draft_yield import expected_tokens, worth_verifying
from common.decoding.estimates import Estimates
from common.types import VerificationMode

LONG_RUN = 64
"""Tokens: runs of accepted tokens are taken to end here at the latest."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Tokens per second, with drafts of `length` tokens."""

    length: int
    speed: float


def of_mode(mode: VerificationMode, estimates: Estimates, max_draft_tokens: int, draft_ahead: bool) -> Throughput:
    """What to expect of an answer in rounds, or else of a stream."""
    if mode is VerificationMode.ROUNDS:
        return of_stopping_rounds(estimates, max_draft_tokens, draft_ahead)
    return of_stream(estimates, max_draft_tokens)


def of_rounds(estimates: Estimates, max_draft_tokens: int, draft_ahead: bool) -> Throughput:
    """The best of rounds whose drafts all have the same length, 1 to `max_draft_tokens`.

    A round takes the time of draft, network and verify. With drafting ahead, the draft costs no time if the one before
    it was accepted as a whole and its bonus token was guessed.
    """
    prefix_acceptance, step = estimates.acceptance.prefix_acceptance, estimates.verify_seconds
    best = Throughput(1, 0.0)
    for length in range(1, max_draft_tokens + 1):
        waited = 1.0 - prefix_acceptance(length + 1) if draft_ahead else 1.0
        verify = step * (1 + length * estimates.token_steps)
        seconds = length * estimates.draft_seconds * waited + estimates.round_trip + verify
        speed = expected_tokens(prefix_acceptance, length) / max(seconds, 1e-9)
        if speed > best.speed:
            best = Throughput(length, speed)
    return best


def of_stopping_rounds(estimates: Estimates, max_draft_tokens: int, draft_ahead: bool) -> Throughput:
    """Rounds whose drafts, of up to `max_draft_tokens`, stop where confidence is low: see `drafters.draft_length`.

    This assumes the best case: a draft is just as long as what is accepted of it, and no other answer's verify delays
    it.
    """
    prefix_acceptance = estimates.acceptance.prefix_acceptance
    tokens = expected_tokens(prefix_acceptance, max_draft_tokens)
    waited = 1.0 - prefix_acceptance(round(tokens)) if draft_ahead else 1.0
    verify = estimates.verify_seconds * (1 + (tokens - 1.0) * estimates.token_steps)
    seconds = (tokens - 1.0) * estimates.draft_seconds * waited + estimates.round_trip + verify
    return Throughput(max_draft_tokens, tokens / max(seconds, 1e-9))


def of_stream(estimates: Estimates, max_draft_tokens: int) -> Throughput:
    """The cloud's own stream with drafts after its newest token; length 0 is the stream without drafts.

    After a mistake of the edge the cloud draws `in_flight` tokens by itself, while a token travels to the edge and a
    draft back. From then on each step verifies what the edge has drafted in the time of a step, up to the next mistake.
    """
    prefix_acceptance, step = estimates.acceptance.prefix_acceptance, max(estimates.step_seconds, 1e-9)
    without_drafts = Throughput(0, 1.0 / step)
    drafted = round(step / estimates.draft_seconds) if estimates.draft_seconds else max_draft_tokens
    length = worth_verifying(prefix_acceptance, min(max_draft_tokens, max(1, drafted)), estimates.token_steps)
    if not length:
        return without_drafts
    in_flight = min(LONG_RUN, 1 + round(estimates.round_trip / step))
    alone = expected_tokens(prefix_acceptance, in_flight - 1)
    drafts = sum(prefix_acceptance(n) for n in range(in_flight, LONG_RUN, length))
    seconds = step * (alone + drafts * (1 + length * estimates.token_steps))
    speed = expected_tokens(prefix_acceptance, LONG_RUN - 1) / seconds
    return Throughput(length, speed) if speed > without_drafts.speed else without_drafts
