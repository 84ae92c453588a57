"""Decides which tokens the edge keeps, what the cloud is asked, how much to draft and how to verify: pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from common.config_schema import Config
from common.decoding import throughput
from common.decoding.estimates import Estimates
from common.types import Mode, Objective, VerificationMode


class Escalation(Enum):
    """What the cloud is asked after the tokens that the edge keeps."""

    NOTHING = "nothing"
    VERIFY = "verify"
    """Verify the rest of the draft."""
    GENERATE = "generate"
    """Generate the next stretch by itself."""


@dataclass(frozen=True, slots=True)
class Gate:
    """F1: a token is confident if its confidence and the draft's product up to it reach their thresholds (0 to 1)."""

    threshold: float = 0.8
    product_threshold: float = 0.3


@dataclass(frozen=True, slots=True)
class Plan:
    """How one request is answered: mode, toggles and lengths."""

    mode: Mode = Mode.COLLABORATIVE
    use_confidence_check: bool = True
    use_draft_verify: bool = True
    gate: Gate = Gate()
    max_draft_tokens: int = 16
    stretch_tokens: int = 8
    objective: Objective = Objective.LATENCY
    verification_mode: VerificationMode = VerificationMode.AUTO
    draft_ahead: bool = True
    fallback: bool = True
    """Whether the edge finishes the answer when no cloud can be used; if not, the request fails."""
    exits: tuple[float, ...] = ()
    """Mode split: the threshold of each exit; above 1 the exit is never taken."""
    standalone: bool = False
    """Mode split: the edge answers alone."""

    @property
    def lossless(self) -> bool:
        """Whether the answer has exactly the cloud model's distribution."""
        if self.mode is Mode.COLLABORATIVE:
            return self.use_draft_verify and not self.use_confidence_check
        if self.mode is Mode.SPLIT:
            return not self.standalone and all(threshold > 1 for threshold in self.exits)
        return self.mode is Mode.CLOUD_ONLY

    @property
    def gated(self) -> bool:
        """Whether F1's gate decides what the edge keeps."""
        return self.use_confidence_check and self.mode is Mode.COLLABORATIVE

    @property
    def asks_cloud(self) -> bool:
        """Whether the cloud takes part. If so, the edge drafts greedily; if not, it samples the answer."""
        if self.mode is Mode.COLLABORATIVE:
            return self.use_confidence_check or self.use_draft_verify
        if self.mode is Mode.SPLIT:
            return not self.standalone
        return self.mode is Mode.CLOUD_ONLY


def default_plan(config: Config) -> Plan:
    """The plan of a request that sets none of it itself."""
    inference, confidence = config.inference, config.edge.confidence
    return Plan(
        use_confidence_check=inference.features.use_confidence_check,
        use_draft_verify=inference.features.use_draft_verify,
        gate=Gate(confidence.threshold, confidence.product_threshold),
        max_draft_tokens=inference.max_draft_tokens,
        stretch_tokens=inference.stretch_tokens,
        objective=inference.objective,
        verification_mode=inference.way,
        draft_ahead=inference.draft_ahead,
        fallback=inference.fallback,
    )


@dataclass(frozen=True, slots=True)
class Decision:
    """The edge commits the first `keep` draft tokens, then asks the cloud. `explored`: it asks only to learn."""

    keep: int
    ask: Escalation
    explored: bool = False


def decide(confidences: Sequence[float], plan: Plan) -> Decision:
    """What to do with a draft of these confidences (see the table of toggles in docs/ARCHITECTURE.md)."""
    if not plan.asks_cloud:
        return Decision(len(confidences), Escalation.NOTHING)
    keep = confident_tokens(confidences, plan.gate) if plan.gated else 0
    if plan.gated and keep == len(confidences) > 0:
        return Decision(keep, Escalation.NOTHING)
    return Decision(
        keep, Escalation.VERIFY if plan.use_draft_verify and keep < len(confidences) else Escalation.GENERATE
    )


def confident_tokens(confidences: Sequence[float], gate: Gate) -> int:
    """How many tokens from the first on pass the gate."""
    product = 1.0
    for kept, confidence in enumerate(confidences):
        product *= confidence
        if confidence < gate.threshold or product < gate.product_threshold:
            return kept
    return len(confidences)


def choose_verification_mode(plan: Plan, estimates: Estimates) -> VerificationMode:
    """Rounds or a stream, for an answer that the cloud takes part in.

    Only rounds can tell the cloud what the edge commits by itself. They are also tried first: they teach the
    estimates most, and only they repeat a seed's tokens, since drafts reach a stream at varying times. While other
    answers are active, rounds are preferred because they take the fewest steps of the cloud.
    """
    if plan.mode is Mode.CLOUD_ONLY:
        return VerificationMode.CONTINUOUS
    if not plan.lossless:
        return VerificationMode.ROUNDS
    if plan.verification_mode is not VerificationMode.AUTO:
        return plan.verification_mode
    if plan.objective is Objective.COST or not estimates.verify.measured or estimates.active:
        return VerificationMode.ROUNDS
    modes = VerificationMode.ROUNDS, VerificationMode.CONTINUOUS
    return max(modes, key=lambda mode: expected_speed(mode, plan, estimates))


def expected_speed(mode: VerificationMode, plan: Plan, estimates: Estimates) -> float:
    """Tokens per second, corrected by the gain so far; a stream without drafts needs no correction."""
    expected = throughput.of_mode(mode, estimates, plan.max_draft_tokens, plan.draft_ahead)
    return expected.speed * estimates.gains[mode].value if expected.length else expected.speed


@dataclass(frozen=True, slots=True)
class Length:
    """Draft up to `limit` tokens, none after the one that brings the product of confidences below `stop_below`."""

    limit: int
    stop_below: float = 0.0


WORTH_A_DRAFT = 0.02
"""Objective cost: the least chance of being accepted that a token is drafted for; it costs only the edge's time."""


def draft_length(plan: Plan, remaining: int, estimates: Estimates) -> Length:
    """How much to draft when `remaining` tokens may still be committed; a verify adds one token to its draft.

    For a lossless answer, a token is drafted while its chance of being accepted is above the number of tokens that
    would otherwise be committed in the time that its draft and verify take.
    """
    if plan.mode is Mode.CLOUD_ONLY:
        return Length(0)
    if not plan.lossless:
        return Length(min(plan.max_draft_tokens, remaining))
    chance = WORTH_A_DRAFT if plan.objective is Objective.COST else 0.0
    if plan.objective is Objective.LATENCY and estimates.verify.measured:
        seconds = estimates.draft_seconds + estimates.step_seconds * estimates.token_steps
        rounds = throughput.of_rounds(estimates, plan.max_draft_tokens, plan.draft_ahead)
        chance = min(0.9, seconds * rounds.speed)
    return Length(min(plan.max_draft_tokens, remaining - 1), chance ** (1.0 / estimates.acceptance.power))
