"""Deterministic fakes of the pipeline's two Protocols: an edge that errs, a cloud that may be lost."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.toy_model import CONTEXT, END, Model, answer_of, cloud_model, verify
from common.decoding.draft_yield import EarlyStop
from common.errors import EndpointError
from common.http.traffic import Traffic
from common.protocol.stream_frames import EndFrame, TokensFrame
from common.types import NEVER, Draft, FinishReason, Sampling, StopRule, Verdict


def erring_model(every: int) -> Model:
    """The reference, but wrong at positions divisible by `every`."""
    return lambda ids: cloud_model(ids) if len(ids) % every else cloud_model(ids) + 1


@dataclass
class FakeDrafter:
    """An edge model; `confidence` is a function of a token's position."""

    model: Model
    confidence: Callable[[int], float] = lambda position: 1.0
    context: int = CONTEXT
    calls: list[int] = field(default_factory=list)
    takes_turns: bool = True
    """Whether other tasks may run while it drafts."""
    busy: bool = False

    async def draft(self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop: StopRule = NEVER) -> Draft:
        assert not self.busy, "a drafter takes one call at a time"
        self.busy = True
        try:
            for _ in range(limit // 2 if self.takes_turns else 0):
                await asyncio.sleep(0)
            return self._draft(token_ids, limit, EarlyStop(stop))
        finally:
            self.busy = False

    def _draft(self, token_ids: Sequence[int], limit: int, early: EarlyStop) -> Draft:
        self.calls.append(limit)
        room = min(limit, self.context - len(token_ids))
        ids = answer_of(self.model, token_ids, room) if room > 0 else []
        confidences = [self.confidence(len(token_ids) + i) for i in range(len(ids))]
        last = next((at for at, confidence in enumerate(confidences) if early.ends_with(confidence)), len(ids))
        ids, confidences = ids[: last + 1], confidences[: last + 1]
        return Draft(ids, confidences, confidences, bool(ids) and ids[-1] == END, 1.0)


@dataclass
class FakeVerifier:
    """A cloud that verifies greedily; it is lost for good after `lost_after` calls."""

    lost_after: int = 10_000
    stream_lost_after: int = 10_000
    """Steps after which a stream breaks."""
    context: int = CONTEXT
    model: Model = cloud_model
    step_ms: float = 0.0
    """What a stream's end says of the cloud's steps; 0: nothing."""
    traffic: Traffic = field(default_factory=Traffic)
    streams: list["FakeStream"] = field(default_factory=list)
    asked: list[list[int]] = field(default_factory=list)

    async def verify(
        self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Verdict:
        self.traffic.calls += 1
        if self.traffic.calls > self.lost_after:
            raise EndpointError("the cloud is lost")
        self.asked.append(list(draft))
        await asyncio.sleep(0)
        return verify(token_ids, draft, max_tokens, self.context, self.model)

    @asynccontextmanager
    async def stream(
        self, token_ids: Sequence[int], max_tokens: int, sampling: Sampling
    ) -> AsyncIterator["FakeStream"]:
        self.traffic.calls += 1
        if self.traffic.calls > self.lost_after:
            raise EndpointError("the cloud is lost")
        length = min(max_tokens, self.context - len(token_ids))
        stream = FakeStream(list(token_ids), length, self.stream_lost_after, self.model, self.step_ms)
        self.streams.append(stream)
        yield stream


@dataclass
class FakeStream:
    """A cloud's stream: each step verifies the newest draft that still fits, then lets other tasks run."""

    token_ids: list[int]
    max_tokens: int
    lost_after: int
    model: Model = cloud_model
    step_ms: float = 0.0
    handshake_seconds: float = 0.0
    end: EndFrame | None = None
    offered: tuple[int, list[int]] = (0, [])
    drafts: list[tuple[int, list[int]]] = field(default_factory=list)

    async def draft(self, position: int, token_ids: Sequence[int]) -> None:
        self.offered = position, list(token_ids)
        self.drafts.append(self.offered)

    async def __aiter__(self) -> AsyncIterator[TokensFrame]:
        begin, steps, drafted, accepted = len(self.token_ids), 0, 0, 0
        while len(self.token_ids) < begin + self.max_tokens:
            if steps == self.lost_after:
                raise EndpointError("the stream broke")
            left = begin + self.max_tokens - len(self.token_ids)
            draft = self._fitting()[: left - 1]
            truth = answer_of(self.model, self.token_ids, len(draft) + 1)
            right = sum(
                1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(draft, truth, strict=False))
            )
            drawn = truth[: right + 1]
            steps, drafted, accepted = steps + 1, drafted + len(draft), accepted + right
            position = len(self.token_ids)
            self.token_ids += drawn
            yield TokensFrame(position=position, token_ids=drawn, accepted=min(right, len(drawn)))
            if drawn[-1] == END:
                break
            for _ in range(5):
                await asyncio.sleep(0)
        reason = FinishReason.STOP if self.token_ids[-1] == END else FinishReason.LENGTH
        work = {"steps": steps, "drafted": drafted, "accepted": accepted}
        cloud_ms = self.step_ms * (steps - 1)
        self.end = EndFrame(finish_reason=reason, cached_tokens=begin - 1, cloud_ms=cloud_ms, **work)

    def _fitting(self) -> list[int]:
        position, draft = self.offered
        since = self.token_ids[position:]
        return draft[len(since) :] if draft[: len(since)] == since else []
