"""How long a draft should be, and how many tokens it then yields, as pure functions of its acceptance."""

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from common.types import StopRule

VERIFY_COST = 0.06
"""What verifying one more token adds to a step, in steps without drafts (measured: a verify of 8 costs 1.4 to 1.5)."""
LEAST_GAIN = 0.05
"""Steps that a draft must be expected to save; below it, sending and reading the draft costs more."""

PrefixAcceptance = Callable[[int], float]
"""P(the first n tokens of a draft are all accepted) by n: 1 at 0, non-increasing."""


def iid_acceptance(rate: float) -> PrefixAcceptance:
    """The prefix acceptance of tokens that are accepted independently, each with probability `rate`."""
    return lambda n: rate**n


def worth_verifying(prefix_acceptance: PrefixAcceptance, max_tokens: int, cost: float = VERIFY_COST) -> int:
    """How many tokens of a draft to verify, 0 to `max_tokens`: each is expected to yield more than it costs.

    A token counts only if all before it are accepted. `cost`: what one token adds to a step, in steps.
    """
    length = 0
    while length < max_tokens and prefix_acceptance(length + 1) > cost:
        length += 1
    return length


def expected_tokens(prefix_acceptance: PrefixAcceptance, length: int) -> float:
    """What one step commits on average after a draft of `length`: 1 + a + a^2 + ... (Leviathan et al. 2023, eq. 1)."""
    return sum(prefix_acceptance(n) for n in range(length + 1))


def stream_draft_length(
    prefix_acceptance: PrefixAcceptance,
    in_flight_tokens: float,
    longest: int,
    verified: int = 16,
    cost: float = VERIFY_COST,
) -> int:
    """How many tokens to draft for a stream, 0 to `longest`; 0 where drafting does not pay now.

    `in_flight_tokens`: what the cloud draws while a token travels to the edge and the draft after it travels back,
    that is, the round trip times the answer's speed. The draft must begin with all of these to be of use; of the
    rest, at most `verified` tokens are verified in one step.
    """
    in_flight = round(in_flight_tokens)
    arrives = prefix_acceptance(in_flight)
    useful = worth_verifying(lambda n: prefix_acceptance(in_flight + n) / arrives, verified, cost) if arrives else 0
    gain = sum(prefix_acceptance(in_flight + n + 1) - cost * arrives for n in range(useful))
    return min(longest, in_flight + useful) if gain >= LEAST_GAIN else 0


class EarlyStop:
    """Follows one draft, token by token, and says where its rule ends it."""

    def __init__(self, rule: StopRule) -> None:
        self._rule = rule
        self._confident = rule.gate is not None
        """Whether all tokens so far have passed the gate."""
        self._product = 1.0
        self.chance = 1.0
        """That all tokens so far that need a verdict are accepted."""

    def ends_with(self, confidence: float) -> bool:
        """Whether the draft's next token, which has this confidence, is its last."""
        rule = self._rule
        if self._confident and rule.gate is not None:
            self._product *= confidence
            self._confident = confidence >= rule.gate.threshold and self._product >= rule.gate.product_threshold
        if not self._confident:
            self.chance *= rule.ceiling * confidence**rule.power
        return self.chance < rule.below

    def ends_within(self, confidences: Iterable[float]) -> bool:
        """Whether one of the draft's next tokens, which have these confidences, is its last."""
        return any(map(self.ends_with, confidences))

    @property
    def rest(self) -> StopRule:
        """The rule for a draft of its own that goes on after the tokens so far."""
        return replace(self._rule, below=min(1.0, self._rule.below / max(self.chance, 1e-9)))
