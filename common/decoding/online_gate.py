"""Moves the gate's thresholds after each round, so that a target rate holds while traffic drifts.

It learns one number: the shift of both thresholds, in log-odds. Each round moves the shift against its miss, as in
adaptive conformal inference (Gibbs & Candès 2021, arXiv 2106.00170). As the shift is bounded, the mean miss goes to 0
whatever the traffic.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.config_schema import OnlineConfig
from common.decoding import policy
from common.decoding.policy import Decision, Escalation, Gate, Plan

FARTHEST = 8.0
"""Largest shift of a threshold in either direction, in log-odds."""
MEMORY = 0.01
"""Weight of a new answer in the running means of lengths."""
EXPECTED = 16.0
"""Tokens per answer, assumed before the first one."""


@dataclass(frozen=True, slots=True)
class GateRound:
    """Tokens of one round: `kept` by the edge, `sent` to the cloud, `accepted` of these, `drawn` by the cloud."""

    kept: int
    sent: int
    accepted: int
    drawn: int


class OnlineGate:
    """The gate of all answers of one server: `decide` applies it, `learn` takes each round and `end` each answer.

    With a target cloud rate it learns from the share of tokens that each round left to the cloud. With a target quality
    (the share of answers that equal the cloud's own, token for token) it learns from labels: verified tokens, accepted
    or rejected, whose confidence the gate would have kept. Labels come free after a token below the threshold, where
    the edge errs more often than elsewhere; that makes the gate stricter, not laxer. Kept tokens have no labels, so a
    share `explore` of confident drafts is verified all the same.
    """

    def __init__(self, settings: OnlineConfig, gate: Gate, seed: int | None = None) -> None:
        self._settings = settings
        self._start = gate
        self._random = random.Random(seed)
        self._lengths = _Lengths()
        self.shift = 0.0
        self.answers = 0
        self.explored = 0
        """Confident drafts that were verified all the same."""
        self.labels = 0
        self.rejected = 0
        """Labels that the cloud rejected."""

    @property
    def gate(self) -> Gate:
        """The current thresholds."""
        start = self._start
        return Gate(shifted(start.threshold, self.shift), shifted(start.product_threshold, self.shift))

    def stats(self) -> dict[str, float]:
        gate = self.gate
        return {
            "threshold": gate.threshold,
            "product_threshold": gate.product_threshold,
            "answers": self.answers,
            "explored": self.explored,
            "labels": self.labels,
            "rejected": self.rejected,
        }

    def decide(self, confidences: Sequence[float], plan: Plan) -> Decision:
        """As `policy.decide` under the current gate, but a share of confident drafts is verified as a whole."""
        decision = policy.decide(confidences, replace(plan, gate=self.gate))
        confident = decision.ask is Escalation.NOTHING and plan.use_draft_verify
        if self._settings.target_quality is None or not confident or self._random.random() >= self._settings.explore:
            return decision
        self.explored += 1
        return Decision(0, Escalation.VERIFY, explored=True)

    def learn(self, confidences: Sequence[float], round: GateRound) -> None:
        """Learns from one round of a gated answer, whose draft had these confidences."""
        settings = self._settings
        miss = self._excess(round) if settings.target_quality is None else self._errors(confidences, round)
        self.shift = min(max(self.shift + settings.rate * miss, -FARTHEST), FARTHEST)
        self._lengths.add(round)

    def end(self) -> None:
        """Counts an answer that has ended, or whose reader has left."""
        self._lengths.end()
        self.answers += 1

    def _excess(self, round: GateRound) -> float:
        """How many tokens fewer than the target the cloud saw, in answers; above 0 the thresholds must rise."""
        target = self._settings.target_cloud_rate
        assert target is not None, "the config has one target"
        seen = round.accepted + round.drawn
        return (target * (round.kept + seen) - seen) / self._lengths.tokens_per_answer

    def _errors(self, confidences: Sequence[float], round: GateRound) -> float:
        """How many more labels were rejected than the target allows, in answers.

        An answer equals the cloud's own if all its kept tokens are right, so a kept token may be wrong with probability
        (1 - quality) / (tokens kept per answer). Each label is weighted by the current number of kept tokens per label:
        a lax gate has few labels and a strict one many, and both must count by what they keep.
        """
        target = self._settings.target_quality
        assert target is not None, "the config has one target"
        judged = confidences[round.kept : round.kept + round.accepted + (round.accepted < round.sent)]
        threshold = self.gate.threshold
        labels = [index for index, confidence in enumerate(judged) if confidence >= threshold]
        rejected = sum(index == round.accepted for index in labels)
        self.labels += len(labels)
        self.rejected += rejected
        self._lengths.labels += len(labels)
        weight = self._lengths.kept_per_answer / self._lengths.labels_per_answer
        return weight * (rejected - len(labels) * (1 - target) / self._lengths.kept_per_answer)


class _Lengths:
    """Running means over answers: a new one has the weight MEMORY, and they start at EXPECTED."""

    def __init__(self) -> None:
        self._answers = 1.0
        self._kept = self._tokens = self.labels = EXPECTED

    @property
    def kept_per_answer(self) -> float:
        return max(self._kept / self._answers, 1.0)

    @property
    def labels_per_answer(self) -> float:
        return max(self.labels / self._answers, 0.1)

    @property
    def tokens_per_answer(self) -> float:
        return max(self._tokens / self._answers, 1.0)

    def add(self, round: GateRound) -> None:
        self._kept += round.kept
        self._tokens += round.kept + round.accepted + round.drawn

    def end(self) -> None:
        decay = 1 - MEMORY
        self._answers = decay * (self._answers + 1)
        self._kept, self._tokens, self.labels = decay * self._kept, decay * self._tokens, decay * self.labels


def shifted(threshold: float, shift: float) -> float:
    """`threshold` (0 to 1) moved by `shift` log-odds; 0 and 1 stay as they are."""
    if not 0 < threshold < 1:
        return threshold
    return 1 / (1 + (1 - threshold) / threshold * math.exp(-shift))
