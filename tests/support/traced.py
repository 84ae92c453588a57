"""An edge and a cloud that follow a trace, behind the pipeline's two Protocols."""

import random
from collections.abc import Sequence
from typing import NoReturn

from calibration.simulation import Trace
from common.decoding.draft_yield import EarlyStop
from common.decoding.online_gate import OnlineGate
from common.decoding.pipeline import Pipeline
from common.decoding.policy import Plan
from common.decoding.request import DecodingRequest
from common.http.traffic import Traffic
from common.protocol.prefix_hash import common_prefix
from common.types import GREEDY, NEVER, Draft, FinishReason, Sampling, StopRule, Verdict

PROMPT = [1000, 1001]
END, WRONG = 0, 999


def truth_of(trace: Trace) -> list[int]:
    """The cloud's answer; it ends with the end token unless it has as many tokens as allowed."""
    ids = list(range(1, len(trace.agrees) + 1))
    return ids if len(ids) == trace.limit else [*ids[:-1], END]


class TracedEdge:
    """Follows the trace; off the cloud's answer it never ends, and is as confident as on it, and certain beyond it."""

    def __init__(self, trace: Trace, rng: random.Random) -> None:
        self._trace, self._rng = trace, rng

    async def draft(self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop: StopRule = NEVER) -> Draft:
        truth, at = truth_of(self._trace), len(token_ids) - len(PROMPT)
        on_path = list(token_ids[len(PROMPT) :]) == truth[:at]
        ids: list[int] = []
        confidences: list[float] = []
        early, stopped = EarlyStop(stop), False
        while len(ids) < limit and END not in ids and not stopped:
            place = at + len(ids)
            known = place < len(truth)
            on_path = on_path and known and self._trace.agrees[place]
            ids.append(truth[place] if on_path else WRONG)
            confidences.append(self._trace.confidences[place] if known else 1.0)
            stopped = early.ends_with(confidences[-1])
        return Draft(ids, confidences, confidences, END in ids, 0.0)


class TracedCloud:
    """Verifies greedily along its answer; ends an answer that differs from it at once."""

    def __init__(self, trace: Trace) -> None:
        self.traffic = Traffic()
        self._trace = trace

    async def verify(
        self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Verdict:
        truth, at = truth_of(self._trace), len(token_ids) - len(PROMPT)
        rest = truth[at:] if list(token_ids[len(PROMPT) :]) == truth[:at] else [END]
        accepted = common_prefix(list(draft), rest)
        drawn = rest[: accepted + max_tokens]
        return Verdict(drawn, accepted, FinishReason.STOP if drawn[-1] == END else None, 0.0)

    def stream(self, token_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> NoReturn:
        raise NotImplementedError("a trace answers in rounds")


async def answered(trace: Trace, plan: Plan, rng: random.Random, online: OnlineGate | None = None) -> Pipeline:
    """The pipeline after its answer."""
    pipeline = Pipeline(
        DecodingRequest(PROMPT, trace.limit, GREEDY, plan), TracedEdge(trace, rng), TracedCloud(trace), online=online
    )
    async for _ in pipeline.run():
        pass
    return pipeline
