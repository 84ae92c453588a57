"""Answers recorded traces with the pipeline itself, in virtual time, under any plan and over any network."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.policy.replayed_pair import AnswerReplay, ReplayedCloud, ReplayedEdge, ReplayedPair
from benchmarks.policy.trace import AnswerTrace, PairTimes
from benchmarks.policy.virtual_time import simulate
from common.decoding.estimates import Estimates
from common.decoding.pipeline import Pipeline
from common.decoding.policy import Plan
from common.decoding.request import DecodingRequest
from common.types import Collaboration, Sampling
from experiments.harness.load import in_turns


@dataclass(frozen=True)
class ReplayedTime:
    """One answer: its seconds, what the cloud computed (tokens, steps), and the pipeline's own report."""

    seconds: float
    computed: int
    steps: int
    report: Collaboration


@dataclass(frozen=True)
class ReplaySetting:
    """Where answers are replayed: a pair's times, a network (`round_trip` in seconds), `clients` at a time."""

    times: PairTimes
    round_trip: float = 0.0
    clients: int = 1

    def pair(self) -> ReplayedPair:
        return ReplayedPair(self.times, self.round_trip)


def replay(
    traces: Sequence[AnswerTrace], setting: ReplaySetting, plan: Plan, estimates: Estimates | None = None
) -> list[ReplayedTime]:
    """The answers to all traces, in their order; `estimates` learn from each."""
    pair, known = setting.pair(), estimates or Estimates()

    async def one(number: int) -> ReplayedTime:
        trace = traces[number].kept_from(plan.gate.threshold) if plan.gated else traces[number]
        return await _answer(AnswerReplay(trace, pair), plan, known)

    return simulate(in_turns(setting.clients, one, range(len(traces))))


async def _answer(answer: AnswerReplay, plan: Plan, estimates: Estimates) -> ReplayedTime:
    request = DecodingRequest(answer.prompt, len(answer.truth), Sampling(temperature=answer.trace.temperature), plan)
    pipeline = Pipeline(request, ReplayedEdge(answer), ReplayedCloud(answer), estimates)
    clock = asyncio.get_running_loop()
    began = clock.time()
    async for _ in pipeline.run():
        pass
    return ReplayedTime(clock.time() - began, answer.computed, answer.steps, pipeline.answer.report)
