"""How long a draft is worth making, sending and verifying, and what it then brings. Pure: no I/O, no clock."""

from collections.abc import Callable

VERIFY_COST = 0.06
"""What verifying one more token adds to a step, in steps without drafts (measured: a verify of 8 costs 1.4 to 1.5)."""
LEAST_GAIN = 0.05
"""Steps that a draft must be expected to save; below it, sending and reading it costs more."""

Right = Callable[[int], float]
"""How often the first n tokens of a draft are all right: 1 for none of them, and for more never above what it was."""


def alike(acceptance: float) -> Right:
    """Of tokens each of which is right as often (0 to 1), whatever the others are."""
    return lambda n: acceptance**n


def worth_verifying(right: Right, most: int, cost: float = VERIFY_COST) -> int:
    """How many tokens of a draft are worth their place in a step: as long as the next one pays for itself.

    A token counts only if all before it are right. `cost`: what one token adds to a step, in steps.
    """
    length = 0
    while length < most and right(length + 1) > cost:
        length += 1
    return length


def expected_tokens(right: Right, length: int) -> float:
    """What one step commits on average after a draft of `length`: 1 + a + a^2 + ... (Leviathan et al. 2023, eq. 1)."""
    return sum(right(n) for n in range(length + 1))


def stream_draft_length(right: Right, ahead: float, longest: int, verified: int = 16, cost: float = VERIFY_COST) -> int:
    """How many tokens to draft, 0 to `longest`; 0 says that drafting does not pay now.

    `ahead`: tokens that the cloud draws while news of a token comes and the draft that follows it goes, that is the
    round trip times the answer's speed. All of these must be right for the rest to be of use; of the rest, at most
    `verified` are verified in one step.
    """
    way = round(ahead)
    arrives = right(way)
    useful = worth_verifying(lambda n: right(way + n) / arrives, verified, cost) if arrives else 0
    gain = sum(right(way + n + 1) - cost * arrives for n in range(useful))
    return min(longest, way + useful) if gain >= LEAST_GAIN else 0
