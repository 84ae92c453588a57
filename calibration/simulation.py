"""What any gate would make of a prompt, from what the edge says along the cloud's answer. Pure: no engine, no HTTP."""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray

from common.decoding import policy
from common.decoding.estimates import Estimates
from common.decoding.policy import Escalation, Plan

Numbers = NDArray[np.floating[Any]]


class Trace(Struct, frozen=True):
    """The edge beside the cloud, at each position of the cloud's greedy answer to one prompt.

    After the first i tokens of that answer the edge's own greedy token has confidence `confidences[i]` (0 to 1), and
    `agrees[i]` says whether it is the cloud's. `worth` is the metric of the cloud's answer (0 to 1), `limit` the most
    tokens that the answer may have.
    """

    confidences: list[float]
    agrees: list[bool]
    worth: float
    limit: int


class SimulatedAnswer(NamedTuple):
    """How one answer comes about under a gate; what is counted is defined at `Answers`."""

    cloud_tokens: int
    computed: int
    calls: int
    changed: bool
    """Whether the edge commits a token that is not the cloud's."""


def replay(trace: Trace, plan: Plan) -> SimulatedAnswer:
    """What the pipeline does with this prompt under `plan`, round by round.

    Exact up to the first token that the edge is sure of and that is not the cloud's. What follows such a token nobody
    knows without asking: it is counted as if the answer then went on as the cloud's does.
    """
    at, end, changed = 0, len(trace.agrees), False
    cloud_tokens = computed = calls = 0
    while at < end:
        room = policy.draft_length(plan, trace.limit - at, Estimates()).limit
        confidences = trace.confidences[at : at + room]
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
        if decision.ask is Escalation.VERIFY:  # a draft that has left the cloud's answer goes on to its full length
            length = len(confidences) if agreed == len(confidences) else room
            drafted = min(length - decision.keep, trace.limit - at - 1)
        accepted = min(agreed - decision.keep, drafted)
        drawn = min(1 if drafted else plan.stretch_tokens, end - at - accepted)
        cloud_tokens += accepted + drawn
        computed += drafted + drawn
        calls += 1
        at += accepted + drawn
    return SimulatedAnswer(cloud_tokens, computed, calls, changed)


def _agreed(agrees: list[bool], begin: int, length: int) -> int:
    """How many tokens of a draft, from its first, are the cloud's own."""
    return next((i for i in range(length) if not agrees[begin + i]), length)


@dataclass(frozen=True)
class Answers:
    """What became of N prompts, in arrays [..., N]: one row of them, or one for each of several gates.

    `tokens` are those of the answer; `cloud_tokens` of them the cloud computed or verified: all that the edge did not
    commit by itself. `computed` is all of the cloud's work: every draft token that it was sent, rejected ones too, and
    every token that it drew itself; `alone` is its work when it answers by itself: the tokens of its answer. `calls`
    are rounds. `worth` is the metric of the answer, `cloud_worth` that of the cloud's (0 to 1).
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
        """The metric of the answers relative to the cloud's, [...]; 1 where the cloud's answers are worth nothing."""
        cloud = self.cloud_worth.sum(-1)
        return np.where(cloud > 0, self.worth.sum(-1) / np.maximum(cloud, 1e-12), 1.0)

    @property
    def loss(self) -> Numbers:
        """By how much the metric's mean is below that of the cloud's answers, [...]; 0.02 are two points."""
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
        """Only these prompts, in this order; one may come twice."""
        return self._each(lambda values: values[..., prompts])

    def _each(self, change: Any) -> "Answers":
        return Answers(*(change(getattr(self, field.name)) for field in fields(self)))


def answers(traces: list[Trace], outcomes: ArrayLike) -> Answers:
    """Simulated answers: `outcomes` holds the four numbers of `SimulatedAnswer` for each of the traces, [..., N, 4].

    An answer that changes counts as worth nothing, so that simulated quality is a lower bound: it may have become as
    right as the cloud's, or righter.
    """
    cloud_tokens, computed, calls, changed = np.moveaxis(np.asarray(outcomes, np.float64), -1, 0)
    tokens = np.broadcast_to([float(len(trace.agrees)) for trace in traces], changed.shape)
    cloud_worth = np.broadcast_to([trace.worth for trace in traces], changed.shape)
    return Answers(tokens, cloud_tokens, computed, calls, (1 - changed) * cloud_worth, cloud_worth, tokens)
