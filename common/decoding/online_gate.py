"""A gate that keeps its target while traffic drifts, by what each round teaches. Pure but for its own small state.

What is learned is one number: by how much both thresholds are shifted, on the scale of log-odds. Each round moves it
against its miss, as adaptive conformal inference does (Gibbs & Candès 2021, arXiv 2106.00170): whatever the traffic,
the mean miss goes to 0 as the shift is bounded.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.config_schema import OnlineConfig
from common.decoding import policy
from common.decoding.policy import Decision, Escalation, Gate, Plan

FARTHEST = 8.0
"""Log-odds by which thresholds are shifted at most, either way."""
MEMORY = 0.01
"""What a new answer weighs in the running means of lengths."""
EXPECTED = 16.0
"""Tokens of an answer before there was one."""


@dataclass(frozen=True, slots=True)
class GateRound:
    """What became of one draft: `kept` by the edge, `sent` to the cloud, `accepted` of these, `drawn` by the cloud."""

    kept: int
    sent: int
    accepted: int
    drawn: int


class OnlineGate:
    """The gate of all answers of one server; `decide` asks it, `learn` and `end` tell it what became of that.

    With a target cloud rate it learns from how much each round left to the cloud. With a target quality (the share of
    answers that are the cloud's own, token for token) it learns from labels: verified tokens of a confidence that the
    gate would keep, accepted or rejected. They come for free behind an unsure token, where the edge errs more often
    than elsewhere: that errs on the safe side. What is kept has none, so a share `explore` of sure drafts is verified
    all the same.
    """

    def __init__(self, settings: OnlineConfig, gate: Gate, seed: int | None = None) -> None:
        self._settings = settings
        self._start = gate
        self._random = random.Random(seed)
        self._lengths = _Lengths()
        self.shift = 0.0
        self.answers = 0
        self.explored = 0
        """Sure drafts that were verified all the same."""
        self.labels = 0
        self.rejected = 0
        """Of the labels: tokens that the gate would have kept, and the cloud rejected."""

    @property
    def gate(self) -> Gate:
        """The thresholds as they now are."""
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
        """As `policy.decide` under the gate as it now is; now and then a sure draft goes to the cloud as a whole."""
        decision = policy.decide(confidences, replace(plan, gate=self.gate))
        sure = decision.ask is Escalation.NOTHING and plan.use_draft_verify
        if self._settings.target_quality is None or not sure or self._random.random() >= self._settings.explore:
            return decision
        self.explored += 1
        return Decision(0, Escalation.VERIFY, explored=True)

    def learn(self, confidences: Sequence[float], round: GateRound) -> None:
        """Takes one round of a gated answer."""
        settings = self._settings
        miss = self._excess(round) if settings.target_quality is None else self._errors(confidences, round)
        self.shift = min(max(self.shift + settings.rate * miss, -FARTHEST), FARTHEST)
        self._lengths.add(round)

    def end(self) -> None:
        """An answer has ended, or its reader has left."""
        self._lengths.end()
        self.answers += 1

    def _excess(self, round: GateRound) -> float:
        """By how much the cloud saw too little, in answers: the thresholds are to rise where that is above 0."""
        target = self._settings.target_cloud_rate
        assert target is not None, "the config has one target"
        seen = round.accepted + round.drawn
        return (target * (round.kept + seen) - seen) / self._lengths.tokens_per_answer

    def _errors(self, confidences: Sequence[float], round: GateRound) -> float:
        """By how much more tokens were rejected than may be, in answers, among those that the gate would have kept.

        An answer stays the cloud's own if all its kept tokens are right: each may be wrong in a share (1 - quality) /
        (tokens kept per answer). A label stands for as many kept tokens as there are to each label nowadays: a lax gate
        has few labels and a strict one many, and both count by what they keep.
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
    """Running means over answers; a new one weighs MEMORY, and before the first they are what `EXPECTED` says."""

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
        left = 1 - MEMORY
        self._answers = left * (self._answers + 1)
        self._kept, self._tokens, self.labels = left * self._kept, left * self._tokens, left * self.labels


def shifted(threshold: float, shift: float) -> float:
    """`threshold` (0 to 1) moved by `shift` on the scale of log-odds; 0 and 1 stay what they are."""
    if not 0 < threshold < 1:
        return threshold
    return 1 / (1 + (1 - threshold) / threshold * math.exp(-shift))
