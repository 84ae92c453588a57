"""Decisions of the collaboration: which tokens the edge keeps, what the cloud is asked. Pure: no I/O, no clock."""

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
    """F1: a token is sure while its confidence and the draft's running product both reach their thresholds (0 to 1)."""

    threshold: float = 0.8
    product_threshold: float = 0.3


@dataclass(frozen=True, slots=True)
class Plan:
    """How one request is to be answered: mode, toggles and lengths, fixed for its whole life."""

    mode: Mode = Mode.COLLABORATIVE
    use_confidence_check: bool = True
    use_draft_verify: bool = True
    gate: Gate = Gate()
    max_draft_tokens: int = 16
    stretch_tokens: int = 8
    objective: Objective = Objective.LATENCY
    way: VerificationMode = VerificationMode.AUTO
    draft_ahead: bool = True
    fallback: bool = True
    """Whether the answer goes on at the edge when no cloud can be used; if not, that is an error."""
    exits: tuple[float, ...] = ()
    """Mode split: the threshold of each exit; above 1 it is never taken."""
    standalone: bool = False
    """Mode split: the edge answers by itself."""

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
        """Whether the cloud takes part at all; the edge then drafts greedily, else it draws the answer itself."""
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
        way=inference.way,
        draft_ahead=inference.draft_ahead,
        fallback=inference.fallback,
    )


@dataclass(frozen=True, slots=True)
class Decision:
    """The edge commits the first `keep` draft tokens; then the cloud is asked. `explored`: only to learn from it."""

    keep: int
    ask: Escalation
    explored: bool = False


def decide(confidences: Sequence[float], plan: Plan) -> Decision:
    """What becomes of a draft with these confidences (the table of toggles in docs/ARCHITECTURE.md)."""
    if not plan.asks_cloud:
        return Decision(len(confidences), Escalation.NOTHING)
    keep = sure_tokens(confidences, plan.gate) if plan.gated else 0
    if plan.gated and keep == len(confidences) > 0:
        return Decision(keep, Escalation.NOTHING)
    return Decision(
        keep, Escalation.VERIFY if plan.use_draft_verify and keep < len(confidences) else Escalation.GENERATE
    )


def sure_tokens(confidences: Sequence[float], gate: Gate) -> int:
    """How many leading tokens pass the gate."""
    product = 1.0
    for kept, confidence in enumerate(confidences):
        product *= confidence
        if confidence < gate.threshold or product < gate.product_threshold:
            return kept
    return len(confidences)


def way_of(plan: Plan, known: Estimates) -> VerificationMode:
    """How an answer comes about in which the cloud takes part: in rounds, or as its own stream.

    What the edge commits by itself only rounds can tell the cloud. They are also the first thing to try: with them one
    learns most, and drafts in a stream come when they come, so only rounds repeat what a seed drew. Among other answers
    the cloud's steps are scarce, of which rounds take the fewest.
    """
    if plan.mode is Mode.CLOUD_ONLY:
        return VerificationMode.CONTINUOUS
    if not plan.lossless:
        return VerificationMode.ROUNDS
    if plan.way is not VerificationMode.AUTO:
        return plan.way
    if plan.objective is Objective.COST or not known.verify.known or known.active:
        return VerificationMode.ROUNDS
    return max((VerificationMode.ROUNDS, VerificationMode.CONTINUOUS), key=lambda way: speed_of(way, plan, known))


def speed_of(way: VerificationMode, plan: Plan, known: Estimates) -> float:
    """Tokens a second: what is expected, times what came of that so far; without drafts a stream is the cloud's own."""
    pace = throughput.of_way(way, known, plan.max_draft_tokens, plan.draft_ahead)
    return pace.speed * known.gains[way].value if pace.length else pace.speed


@dataclass(frozen=True, slots=True)
class Length:
    """Draft up to `limit` tokens, and none after one that brings the product of confidences below `stop_below`."""

    limit: int
    stop_below: float = 0.0


WORTH_A_DRAFT = 0.02
"""Objective cost: the chance of being accepted that a token must have; it costs nothing but the edge's time."""


def draft_length(plan: Plan, remaining: int, known: Estimates) -> Length:
    """How much to draft when `remaining` tokens may still be committed; a verify adds one token to its draft.

    Lossless, a token is worth drafting as long as the tokens that it brings, its chance of being accepted, are more
    than what would else be answered in the time it takes, on the edge and in the verify.
    """
    if plan.mode is Mode.CLOUD_ONLY:
        return Length(0)
    if not plan.lossless:
        return Length(min(plan.max_draft_tokens, remaining))
    chance = WORTH_A_DRAFT if plan.objective is Objective.COST else 0.0
    if plan.objective is Objective.LATENCY and known.verify.known:
        seconds = known.draft_seconds + known.step_seconds * known.token_steps
        chance = min(0.9, seconds * throughput.of_rounds(known, plan.max_draft_tokens, plan.draft_ahead).speed)
    return Length(min(plan.max_draft_tokens, remaining - 1), chance ** (1.0 / known.acceptance.power))
