"""An edge and a cloud that follow a recorded answer in virtual time, behind the pipeline's two Protocols."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.policy.batched_steps import BatchedSteps
from benchmarks.policy.trace import AnswerTrace, PairTimes
from common.decoding.draft_yield import EarlyStop, iid_acceptance, worth_verifying
from common.http.traffic import Traffic
from common.protocol.prefix_hash import common_prefix
from common.protocol.stream_frames import EndFrame, TokensFrame
from common.types import NEVER, Draft, FinishReason, Sampling, StopRule, Verdict

END, WRONG = 0, 1_000_000
VERIFIED = 16
"""Draft tokens that a step of a stream verifies at most."""


class ReplayedPair:
    """The engines of one edge and one cloud, which all answers share, and the network; `round_trip` in seconds."""

    def __init__(self, times: PairTimes, round_trip: float) -> None:
        self.times, self.round_trip = times, round_trip
        self.edge = BatchedSteps(times.draft, times.drafted)
        self.cloud = BatchedSteps(times.step, times.verified)


@dataclass
class AnswerReplay:
    """One recorded answer. Counts what the edge and the cloud compute for it."""

    trace: AnswerTrace
    pair: ReplayedPair
    computed: int = 0
    """Tokens that the cloud computed: those drawn and those verified."""
    steps: int = 0
    drafted: int = 0
    """Tokens that the edge drafted."""
    prompt: list[int] = field(init=False)
    truth: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.prompt = [2_000_000 + n for n in range(max(1, self.trace.prompt_tokens))]
        ids = list(range(1, len(self.trace.agrees) + 1))
        self.truth = [*ids[:-1], END] if self.trace.ended else ids

    def place(self, token_ids: Sequence[int]) -> tuple[int, int]:
        """How many of `token_ids` follow the recorded answer, and how many follow after the first that does not."""
        answer = list(token_ids[len(self.prompt) :])
        right = common_prefix(answer, self.truth)
        return right, len(answer) - right

    def drawn(self, token_ids: Sequence[int], draft: Sequence[int], max_tokens: int) -> tuple[list[int], int]:
        """What the cloud draws after `token_ids`, and how many of these tokens are the draft's."""
        right, astray = self.place(token_ids)
        rest = [END] if astray else self.truth[right:]
        accepted = common_prefix(list(draft), rest)
        return rest[: accepted + max_tokens], accepted

    def finished(self, drawn: Sequence[int]) -> FinishReason | None:
        return FinishReason.STOP if not drawn or drawn[-1] == END else None

    async def step(self, verified: int, drawn: int) -> None:
        """The cloud's steps for `drawn` tokens of its own, of which the first verifies a draft."""
        first = self.steps == 0
        self.computed += verified + drawn
        self.steps += 1
        read = self.pair.times.cloud_read * self.trace.prompt_tokens if first else 0.0
        await self.pair.cloud.run(verified + 1, read)
        for _ in range(drawn - 1):
            await self.pair.cloud.run(1)


class ReplayedEdge:
    """Drafts what the edge drafted, a token in each step of the edge."""

    def __init__(self, answer: AnswerReplay) -> None:
        self._answer = answer

    async def draft(self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop: StopRule = NEVER) -> Draft:
        answer, pair = self._answer, self._answer.pair
        began = asyncio.get_running_loop().time()
        read = 0.0 if answer.drafted else pair.times.edge_read * answer.trace.prompt_tokens
        early, ids, confidences = EarlyStop(stop), list[int](), list[float]()
        right, astray = answer.place(token_ids)
        while len(ids) < limit and END not in ids:
            await pair.edge.run(1, read)
            read = 0.0
            answer.drafted += 1
            token, confidence = self._next(right, astray)
            right, astray = (right + 1, 0) if not astray and token != WRONG else (right, astray + 1)
            ids.append(token)
            confidences.append(confidence)
            if early.ends_with(confidence):
                break
        seconds = asyncio.get_running_loop().time() - began
        return Draft(ids, confidences, confidences, END in ids, seconds * 1e3)

    def _next(self, right: int, astray: int) -> tuple[int, float]:
        """The edge's next token, and its confidence, after `right` tokens of the answer and `astray` others."""
        trace = self._answer.trace
        if not astray and right < len(trace.agrees):
            return (self._answer.truth[right] if trace.agrees[right] else WRONG), trace.confidences[right]
        recorded = trace.astray.get(right) or [0.5]
        return WRONG, recorded[min(max(astray - 1, 0), len(recorded) - 1)]


class ReplayedCloud:
    """Draws the recorded answer, in rounds or as a stream."""

    def __init__(self, answer: AnswerReplay) -> None:
        self._answer = answer
        self.traffic = Traffic()

    async def verify(
        self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Verdict:
        answer, clock = self._answer, asyncio.get_running_loop()
        began = clock.time()
        self.traffic.calls += 1
        await asyncio.sleep(answer.pair.round_trip / 2)
        drawn, accepted = answer.drawn(token_ids, draft, max_tokens)
        begins_at = clock.time()
        await answer.step(len(draft), max(1, len(drawn) - accepted))
        cloud = clock.time() - begins_at
        await asyncio.sleep(answer.pair.round_trip / 2 + answer.pair.times.overhead)
        seconds = clock.time() - began
        return Verdict(drawn, accepted, answer.finished(drawn), seconds * 1e3, cloud_ms=cloud * 1e3)

    @asynccontextmanager
    async def stream(
        self, token_ids: Sequence[int], max_tokens: int, sampling: Sampling
    ) -> AsyncIterator["ReplayedStream"]:
        self.traffic.calls += 1
        stream = ReplayedStream(self._answer, list(token_ids), max_tokens)
        task = asyncio.create_task(stream.generate())
        try:
            yield stream
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class ReplayedStream:
    """The cloud's stream: each step verifies the newest draft that has arrived and still fits."""

    handshake_seconds = 0.0

    def __init__(self, answer: AnswerReplay, token_ids: list[int], max_tokens: int) -> None:
        self._answer = answer
        self._token_ids = token_ids
        self._left = max_tokens
        self._offered: tuple[int, list[int]] = (0, [])
        self._frames: asyncio.Queue[TokensFrame | EndFrame] = asyncio.Queue()
        self._right, self._wrong = 3.0, 0.3
        """Recent draft tokens, counted as the cloud does (`cloud/vllm_plugin/running_drafts.py`)."""
        self.end: EndFrame | None = None

    async def draft(self, position: int, token_ids: Sequence[int]) -> None:
        offer = position, list(token_ids)
        asyncio.get_running_loop().call_later(self._answer.pair.round_trip / 2, self._receive, offer)

    def _receive(self, offer: tuple[int, list[int]]) -> None:
        self._offered = offer

    async def __aiter__(self) -> AsyncIterator[TokensFrame]:
        while True:
            frame = await self._frames.get()
            if isinstance(frame, EndFrame):
                self.end = frame
                return
            yield frame

    async def generate(self) -> None:
        """The cloud's side, step by step, until the answer is complete."""
        answer, steps, drafted, accepted_tokens = self._answer, 0, 0, 0
        await asyncio.sleep(answer.pair.round_trip / 2)
        reason = None
        while self._left > 0 and reason is None:
            draft = self._fitting()[: min(self._left - 1, self._allowance())]
            drawn, accepted = answer.drawn(self._token_ids, draft, 1)
            await answer.step(len(draft), 1)
            steps, drafted, accepted_tokens = steps + 1, drafted + len(draft), accepted_tokens + accepted
            if draft:
                self._right = self._right * 0.9 + accepted
                self._wrong = self._wrong * 0.9 + (accepted < len(draft))
            position = len(self._token_ids)
            self._token_ids += drawn
            self._left -= len(drawn)
            reason = answer.finished(drawn)
            self._send(TokensFrame(position=position, token_ids=drawn, accepted=accepted))
        self._send(
            EndFrame(
                finish_reason=reason or FinishReason.LENGTH, steps=steps, drafted=drafted, accepted=accepted_tokens
            )
        )

    def _send(self, frame: TokensFrame | EndFrame) -> None:
        delay = self._answer.pair.round_trip / 2 + self._answer.pair.times.overhead / 2
        asyncio.get_running_loop().call_later(delay, self._frames.put_nowait, frame)

    def _fitting(self) -> list[int]:
        position, draft = self._offered
        since = self._token_ids[position:]
        return draft[len(since) :] if draft[: len(since)] == since else []

    def _allowance(self) -> int:
        rate = self._right / (self._right + self._wrong)
        return max(1, worth_verifying(iid_acceptance(rate), VERIFIED))
