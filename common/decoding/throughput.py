"""How many tokens a second each way of answering would bring, by what is known of network, edge and cloud. Pure."""

from dataclasses import dataclass

from common.decoding.draft_length import expected_tokens, worth_verifying
from common.decoding.estimates import Estimates
from common.types import VerificationMode


@dataclass(frozen=True, slots=True)
class Throughput:
    """Tokens a second, with drafts of `length`."""

    length: int
    speed: float


def of_way(way: VerificationMode, known: Estimates, most: int, draft_ahead: bool) -> Throughput:
    """What is expected of an answer that comes in rounds, or as a stream."""
    return of_stopping_rounds(known, most, draft_ahead) if way is VerificationMode.ROUNDS else of_stream(known, most)


def of_rounds(known: Estimates, most: int, draft_ahead: bool) -> Throughput:
    """The best of drafts of 1 to `most` tokens, each verified before the next is known to be of use.

    A round's seconds: draft, network, verify. With drafting ahead the draft is there already if the one before it was
    accepted whole and the bonus token guessed.
    """
    right, step = known.acceptance.right, known.step_seconds
    best = Throughput(1, 0.0)
    for length in range(1, most + 1):
        waited = 1.0 - right(length + 1) if draft_ahead else 1.0
        seconds = length * known.draft_seconds * waited + known.round_trip + step * (1 + length * known.token_steps)
        speed = expected_tokens(right, length) / max(seconds, 1e-9)
        if speed > best.speed:
            best = Throughput(length, speed)
    return best


def of_stopping_rounds(known: Estimates, most: int, draft_ahead: bool) -> Throughput:
    """Rounds whose drafts, of up to `most` tokens, stop where the edge becomes unsure: see `policy.draft_length`.

    At best such a draft is just as long as what is accepted of it, and no other answer's verify is in the way.
    """
    right = known.acceptance.right
    tokens = expected_tokens(right, most)
    waited = 1.0 - right(round(tokens)) if draft_ahead else 1.0
    verify = known.step_seconds + (tokens - 1.0) * known.verify.slope
    seconds = (tokens - 1.0) * known.draft_seconds * waited + known.round_trip + verify
    return Throughput(most, tokens / max(seconds, 1e-9))


def of_stream(known: Estimates, most: int) -> Throughput:
    """The cloud's own stream with drafts that follow its newest token; length 0 is the stream alone.

    While news of a token comes and a draft goes the cloud draws `ahead` tokens by itself, and one more in the step
    that is under way; if all of them were guessed, the rest of the draft is verified in one step.
    """
    right, step = known.acceptance.right, max(known.step_seconds, 1e-9)
    alone = Throughput(0, 1.0 / step)
    length = worth_verifying(right, most, known.token_steps)
    if not length:
        return alone
    ahead = 1.0 + (known.round_trip + length * known.draft_seconds) / step
    tokens = ahead + sum(right(round(ahead) + n) for n in range(length + 1))
    speed = tokens / (step * (ahead + 1 + length * known.token_steps))
    return Throughput(length, speed) if speed > alone.speed else alone
