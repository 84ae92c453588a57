"""How long a draft is worth making, sending and verifying, and what it then brings. Pure: no I/O, no clock."""

VERIFY_COST = 0.06
"""What verifying one more token adds to a step, in steps without drafts (measured: a verify of 8 costs 1.4 to 1.5)."""
LEAST_GAIN = 0.05
"""Steps that a draft must be expected to save; below it, sending and reading it costs more."""


def worth_verifying(acceptance: float, most: int, cost: float = VERIFY_COST) -> int:
    """How many tokens of a draft are worth their place in a step: as long as the next one pays for itself.

    `acceptance` (0 to 1): how often one more token is right. A token counts only if all before it are right. `cost`:
    what one token adds to a step, in steps.
    """
    chance, length = acceptance, 0
    while length < most and chance > cost:
        chance *= acceptance
        length += 1
    return length


def expected_tokens(acceptance: float, length: int) -> float:
    """What one step commits on average after a draft of `length`: 1 + a + a^2 + ... (Leviathan et al. 2023, eq. 1)."""
    return sum(acceptance**n for n in range(length + 1))


def stream_draft_length(
    acceptance: float, ahead: float, longest: int, verified: int = 16, cost: float = VERIFY_COST
) -> int:
    """How many tokens to draft, 0 to `longest`; 0 says that drafting does not pay now.

    `ahead`: tokens that the cloud draws while news of a token comes and the draft that follows it goes, that is the
    round trip times the answer's speed. All of these must be right for the rest to be of use; of the rest, at most
    `verified` are verified in one step.
    """
    useful = worth_verifying(acceptance, verified, cost)
    gain = sum(acceptance ** (n + 1) - cost for n in range(useful))
    if gain * acceptance**ahead < LEAST_GAIN:
        return 0
    return min(longest, round(ahead) + useful)
