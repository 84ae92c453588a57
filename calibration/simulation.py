"""Simulates a gate on a traced prompt: the answer's tokens, cloud work, calls and quality. Pure functions."""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray

from common.decoding import policy
from common.decoding.draft_yield import EarlyStop
from common.decoding.drafters.draft_length import Length, draft_length
from common.decoding.estimates import AnswerEstimates, Estimates
from common.decoding.policy import Escalation, Plan

Numbers = NDArray[np.floating[Any]]


class Trace(Struct, frozen=True):
    """The edge's prediction at each position of the cloud's greedy answer to one prompt.

    After the first i tokens of that answer the edge's own greedy token has confidence `confidences[i]` (0 to 1), and
    `agrees[i]` says whether it is the cloud's. `worth` is the metric of the cloud's answer (0 to 1), `limit` the
    maximum length of the answer in tokens.
    """

    confidences: list[float]
    agrees: list[bool]
    worth: float
    limit: int


class SimulatedAnswer(NamedTuple):
    """The counts of one answer under a gate, as `Answers` defines them."""

    cloud_tokens: int
    computed: int
    calls: int
    changed: bool
    """Whether the edge commits a token that is not the cloud's."""


def replay(trace: Trace, plan: Plan) -> SimulatedAnswer:
    """Does what the pipeline does with this prompt under `plan`, round by round.

    Exact up to the first token that the edge keeps and the cloud disagrees with. The tokens after it would have to be
    asked for; they are counted as if the answer went on like the cloud's. A draft is as long as if the edge were as
    confident after a wrong token as after the cloud's, and certain beyond its end, and did not draft ahead.
    """
    at, end, changed = 0, len(trace.agrees), False
    cloud_tokens = computed = calls = 0
    known = AnswerEstimates(Estimates())
    while at < end:
        confidences = _drafted(trace, at, draft_length(plan, trace.limit - at, known.current()))
        agreed = _agreed(trace.agrees, at, len(confidences))
        decision = policy.decide(confidences, plan)
        if decision.keep > agreed:
            changed = True
            at += agreed + 1
            continue
        at += decision.keep
        if decision.ask is Escalation.NOTHING or at == end:
            continue
        drafted = 0
        if decision.ask is Escalation.VERIFY:
            drafted = min(len(confidences) - decision.keep, trace.limit - at - 1)
        accepted = min(agreed - decision.keep, drafted)
        known.acceptance.add(confidences[decision.keep :][:drafted], accepted)
        drawn = min(1 if drafted else plan.stretch_tokens, end - at - accepted)
        cloud_tokens += accepted + drawn
        computed += drafted + drawn
        calls += 1
        at += accepted + drawn
    return SimulatedAnswer(cloud_tokens, computed, calls, changed)


def _drafted(trace: Trace, begin: int, length: Length) -> list[float]:
    """The confidences of a draft from position `begin` on."""
    early = EarlyStop(length.stop)
    beyond = [] if all(trace.agrees[begin:]) else length.limit * [1.0]  # an edge that is astray passes the end
    confidences = [*trace.confidences[begin:], *beyond][: length.limit]
    last = next((at for at, confidence in enumerate(confidences) if early.ends_with(confidence)), len(confidences))
    return confidences[: last + 1]


def _agreed(agrees: list[bool], begin: int, length: int) -> int:
    """The length of a draft's longest prefix that the cloud agrees with."""
    return next((i for i in range(length) if not agrees[begin + i]), length)


@dataclass(frozen=True)
class Answers:
    """Counts of the answers to N prompts, in arrays [..., N]: one row, or one row for each of several gates.

    tokens: of the answer. cloud_tokens: those that the cloud computed or verified, that is, all that the edge did not
    commit by itself. computed: the cloud's work in tokens: every draft token that it received, rejected ones too, and
    every token that it drew. alone: its work without an edge: the tokens of its own answer. calls: rounds. worth: the
    metric of the answer (0 to 1). cloud_worth: the metric of the cloud's own answer.
    """

    tokens: Numbers
    cloud_tokens: Numbers
    computed: Numbers
    calls: Numbers
    worth: Numbers
    cloud_worth: Numbers
    alone: Numbers

    @property
    def cloud_rate(self) -> Numbers:
        """The share of answer tokens that the cloud computed or verified, [...]; 0 to 1."""
        return np.asarray(self.cloud_tokens.sum(-1) / self.tokens.sum(-1))

    @property
    def cloud_work(self) -> Numbers:
        """The tokens that the cloud computed over those that it computes alone, [...]; may be above 1."""
        return np.asarray(self.computed.sum(-1) / self.alone.sum(-1))

    @property
    def calls_per_token(self) -> Numbers:
        """Cloud calls per answer token, [...]."""
        return np.asarray(self.calls.sum(-1) / self.tokens.sum(-1))

    @property
    def quality(self) -> Numbers:
        """The metric of the answers relative to the cloud's, [...]; 1 if no answer of the cloud is right."""
        cloud = self.cloud_worth.sum(-1)
        return np.where(cloud > 0, self.worth.sum(-1) / np.maximum(cloud, 1e-12), 1.0)

    @property
    def loss(self) -> Numbers:
        """The mean metric of the cloud's answers minus that of these answers, [...]; 0.02 is two percentage points."""
        return np.asarray(self.cloud_worth.mean(-1) - self.worth.mean(-1))

    @property
    def worse(self) -> NDArray[np.bool_]:
        """Which answers are worse than the cloud's, [..., N]."""
        return np.asarray(self.worth < self.cloud_worth)

    @property
    def risk(self) -> Numbers:
        """The share of prompts whose answer is worse than the cloud's, [...]; 0 to 1."""
        return np.asarray(self.worse.mean(-1))

    def __getitem__(self, gate: int) -> "Answers":
        """One row of several."""
        return self._each(lambda values: values[gate])

    def of(self, prompts: NDArray[np.intp]) -> "Answers":
        """Only these prompts, in this order; repeats are allowed."""
        return self._each(lambda values: values[..., prompts])

    def _each(self, change: Any) -> "Answers":
        return Answers(*(change(getattr(self, field.name)) for field in fields(self)))


def answers(traces: list[Trace], outcomes: ArrayLike) -> Answers:
    """Simulated answers: `outcomes` holds the four numbers of `SimulatedAnswer` for each of the traces, [..., N, 4].

    An answer that differs from the cloud's counts as wrong although it may be right: simulated quality is a lower
    bound.
    """
    cloud_tokens, computed, calls, changed = np.moveaxis(np.asarray(outcomes, np.float64), -1, 0)
    tokens = np.broadcast_to([float(len(trace.agrees)) for trace in traces], changed.shape)
    cloud_worth = np.broadcast_to([trace.worth for trace in traces], changed.shape)
    return Answers(tokens, cloud_tokens, computed, calls, (1 - changed) * cloud_worth, cloud_worth, tokens)
