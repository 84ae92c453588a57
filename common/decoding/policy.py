"""Decides which tokens the edge keeps, what the cloud is asked and how it verifies: pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from common.config_schema import Config
from common.decoding import throughput
from common.decoding.estimates import Estimates
from common.routing.router import Routing
from common.types import Gate as Gate
from common.types import Mode, Objective, StopRule, VerificationMode

JUDGED_VERDICTS = 3
"""Verdicts after the first one until a gated answer is judged by its pace."""


class Escalation(Enum):
    """What the cloud is asked after the tokens that the edge keeps."""

    NOTHING = "nothing"
    VERIFY = "verify"
    """Verify the rest of the draft."""
    GENERATE = "generate"
    """Generate the next stretch by itself."""


class Handover(Enum):
    """What a cloud that verifies nothing does from the first token on that is not confident, to the answer's end."""

    REST = "rest"
    """It goes on with the edge's answer."""
    WHOLE = "whole"
    """It answers from the beginning, so nothing is shown of an answer that the edge has not completed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one request is answered: mode, toggles and lengths."""

    mode: Mode = Mode.COLLABORATIVE
    use_confidence_check: bool = True
    use_draft_verify: bool = True
    gate: Gate = field(default_factory=Gate)
    reasoning_gate: Gate | None = None
    """The gate of thoughts; None: that of all tokens."""
    thinking: bool = False
    """Whether what the answer goes on with is a thought."""
    max_draft_tokens: int = 16
    stretch_tokens: int = 8
    objective: Objective = Objective.LATENCY
    verification_mode: VerificationMode = VerificationMode.AUTO
    draft_ahead: bool = True
    draft_stop: StopRule | None = None
    """Where drafts end early; None: where measurements say so."""
    fallback: bool = True
    """Whether the edge finishes the answer when no cloud can be used; if not, the request fails."""
    exits: tuple[float, ...] = ()
    """Mode split: the threshold of each exit; above 1 the exit is never taken."""
    handover: Handover | None = None
    """How the cloud takes over an answer; None: it verifies drafts, or generates a stretch."""
    standalone: bool = False
    """Mode split: the edge answers alone."""
    routing: Routing | None = None
    """Mode route: what decides who answers."""
    mode_because: str | None = None
    """Why the mode is another one than the server's default, if nobody chose it."""

    @property
    def lossless(self) -> bool:
        """Whether the answer has exactly the cloud model's distribution."""
        if self.mode is Mode.COLLABORATIVE:
            return self.use_draft_verify and not self.use_confidence_check
        if self.mode is Mode.SPLIT:
            return not self.standalone and all(threshold > 1 for threshold in self.exits)
        return self.mode is Mode.CLOUD_ONLY

    @property
    def uses_edge(self) -> bool:
        """Whether the edge computes from the beginning, not only if the cloud is lost."""
        return self.mode is not Mode.CLOUD_ONLY

    @property
    def gated(self) -> bool:
        """Whether F1's gate decides what the edge keeps."""
        return self.use_confidence_check and self.mode is Mode.COLLABORATIVE

    @property
    def current_gate(self) -> Gate:
        """The gate of the next draft: one that begins in a thought is judged as a thought to its end."""
        return self.reasoning_gate if self.thinking and self.reasoning_gate else self.gate

    @property
    def holds_back(self) -> bool:
        """Whether the edge's tokens are shown only when its answer is complete."""
        return self.handover is Handover.WHOLE and self.asks_cloud

    @property
    def asks_cloud(self) -> bool:
        """Whether the cloud takes part, or may: until it has decided, a router may ask it."""
        if self.mode is Mode.COLLABORATIVE:
            return self.use_confidence_check or self.use_draft_verify
        if self.mode is Mode.SPLIT:
            return not self.standalone
        return self.mode in (Mode.CLOUD_ONLY, Mode.ROUTE)

    @property
    def samples_at_edge(self) -> bool:
        """Whether what the edge draws may be the answer itself; if not, it drafts greedily."""
        return self.mode is Mode.ROUTE or not self.asks_cloud


def default_plan(config: Config) -> Plan:
    """The plan of a request that sets none of it itself."""
    inference, confidence = config.inference, config.edge.confidence
    return Plan(
        use_confidence_check=inference.features.use_confidence_check,
        use_draft_verify=inference.features.use_draft_verify,
        gate=Gate(confidence.threshold, confidence.product_threshold),
        reasoning_gate=reasoning_gate(confidence.reasoning_threshold),
        max_draft_tokens=inference.max_draft_tokens,
        stretch_tokens=inference.stretch_tokens,
        objective=inference.objective,
        verification_mode=inference.way,
        draft_ahead=inference.draft_ahead,
        fallback=inference.fallback,
    )


def reasoning_gate(threshold: float | None) -> Gate | None:
    """The gate of thoughts, which looks at each token by itself: the doubts of a long thought would add up."""
    return None if threshold is None else Gate(threshold, 0.0)


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
    keep = confident_tokens(confidences, plan.current_gate) if plan.gated else 0
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


class ModeChoice(NamedTuple):
    """A verification mode, and why."""

    mode: VerificationMode
    because: str


def choose_verification_mode(plan: Plan, estimates: Estimates) -> VerificationMode:
    """Rounds or a stream, for an answer that the cloud takes part in."""
    return explained_mode(plan, estimates).mode


def explained_mode(plan: Plan, estimates: Estimates) -> ModeChoice:
    """The choice of `choose_verification_mode`, and its reason.

    Only rounds can tell the cloud what the edge commits by itself. They are also tried first: they teach the
    estimates most, and only they repeat a seed's tokens, since drafts reach a stream at varying times.
    """
    rounds, stream = VerificationMode.ROUNDS, VerificationMode.CONTINUOUS
    if plan.mode is Mode.CLOUD_ONLY:
        return ModeChoice(stream, "the cloud writes alone")
    if not plan.lossless:
        return ModeChoice(rounds, "only rounds can tell the cloud what the edge keeps by itself")
    if plan.verification_mode is not VerificationMode.AUTO:
        return ModeChoice(plan.verification_mode, "it is named, by the config or the request")
    if plan.objective is Objective.COST:
        return ModeChoice(rounds, "they take the fewest steps of the cloud, which is the objective")
    if not estimates.verify.measured:
        return ModeChoice(rounds, "nothing is measured yet, and they teach most")
    fastest = max((rounds, stream), key=lambda mode: expected_speed(mode, plan, estimates))
    return ModeChoice(fastest, "it promises the most tokens a second")


def expected_speed(mode: VerificationMode, plan: Plan, estimates: Estimates) -> float:
    """Tokens per second, corrected by the gain so far; a stream without drafts needs no correction."""
    expected = throughput.of_mode(mode, estimates, plan.max_draft_tokens, plan.draft_ahead)
    return expected.speed * estimates.gains[mode].value if expected.length else expected.speed


@dataclass(frozen=True, slots=True)
class GatedPace:
    """What a gated answer has shown: in `seconds`, over `verdicts` after its first, it grew by `tokens`.

    `computed`: tokens that the cloud drew or verified for them.
    """

    tokens: int
    computed: int
    verdicts: int
    seconds: float


def gate_in_vain(plan: Plan, pace: GatedPace, estimates: Estimates) -> bool:
    """Whether the cloud alone would write a gated answer faster, and compute no more for it than it does now.

    So it is where the edge is unsure of most tokens, and many answers share its time.
    """
    if plan.verification_mode is not VerificationMode.AUTO or plan.objective is Objective.COST:
        return False
    judged = plan.use_draft_verify and estimates.verify.measured and pace.verdicts >= JUDGED_VERDICTS
    return judged and pace.computed >= pace.tokens and pace.seconds > pace.tokens * estimates.step_seconds
