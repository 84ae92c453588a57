"""Answers recorded traces with the pipeline itself, in virtual time, under any plan and over any network."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.policy.replayed_pair import AnswerReplay, ReplayedCloud, ReplayedEdge
from benchmarks.policy.trace import AnswerTrace, PairTimes
from benchmarks.policy.virtual_time import simulate
from common.decoding.estimates import Estimates
from common.decoding.pipeline import Pipeline
from common.decoding.policy import Plan
from common.decoding.request import DecodingRequest
from common.types import Collaboration, Sampling


@dataclass(frozen=True)
class ReplayedTime:
    """One answer: its seconds, what the cloud computed (tokens, steps), and the pipeline's own report."""

    seconds: float
    computed: int
    steps: int
    report: Collaboration


def replay(
    traces: Sequence[AnswerTrace],
    times: PairTimes,
    round_trip: float,
    plan: Plan,
    estimates: Estimates | None = None,
) -> list[ReplayedTime]:
    """Answers one after the other, over a network of `round_trip` seconds; `estimates` learn from each."""
    known = estimates or Estimates()
    return simulate(_answer_all(traces, times, round_trip, plan, known))


async def _answer_all(
    traces: Sequence[AnswerTrace], times: PairTimes, round_trip: float, plan: Plan, estimates: Estimates
) -> list[ReplayedTime]:
    kept = [trace.kept_from(plan.gate.threshold) if plan.gated else trace for trace in traces]
    return [await _answer(AnswerReplay(trace, times, round_trip), plan, estimates) for trace in kept]


async def _answer(answer: AnswerReplay, plan: Plan, estimates: Estimates) -> ReplayedTime:
    request = DecodingRequest(answer.prompt, len(answer.truth), Sampling(temperature=answer.trace.temperature), plan)
    pipeline = Pipeline(request, ReplayedEdge(answer), ReplayedCloud(answer), estimates)
    clock = asyncio.get_running_loop()
    began = clock.time()
    async for _ in pipeline.run():
        pass
    return ReplayedTime(clock.time() - began, answer.computed, answer.steps, pipeline.answer.report)
