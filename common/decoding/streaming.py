"""The continuous way: the cloud's stream is committed as it comes, drafts that may follow it go up. Knows no HTTP."""

import asyncio
import time
from collections.abc import AsyncGenerator

import msgspec

from common.decoding.answer import Answer, Chunk
from common.decoding.draft_length import stream_draft_length
from common.decoding.estimates import Estimates
from common.decoding.interfaces import Drafter, Stream, Verifier
from common.errors import ContextLengthError
from common.protocol.prefix_hash import common_prefix
from common.protocol.stream_frames import LONGEST_DRAFT, EndFrame, TokensFrame
from common.types import Draft, Provenance, Sampling

PORTION = 8
"""Tokens drafted before the drafter looks for news again."""


class Continuation:
    """What the edge believes to come after the first `position` tokens, with its confidences."""

    def __init__(self) -> None:
        self.position = 0
        self.token_ids: list[int] = []
        self.confidences: list[float] = []
        self._run = 0
        """Tokens before `position` that were right, up to the last that was not."""

    def follow(self, committed: list[int], known: Estimates) -> None:
        """Moves on to the end of `committed`; what contradicts it is dropped, and either way a lesson."""
        new = committed[self.position :]
        right = common_prefix(new, self.token_ids)
        seen = min(len(new), len(self.token_ids), right + 1)
        known.acceptance.add(self.confidences[:seen], right, self._run)
        self._run = self._run + right if right == seen else 0
        keep = right if right == len(new) else len(self.token_ids)
        del self.token_ids[:keep], self.confidences[:keep]
        self.position = len(committed)

    def extend(self, draft: Draft) -> None:
        self.token_ids += draft.token_ids
        self.confidences += draft.confidences


class Follower:
    """One answer of the cloud; without a `drafter` it is plain streaming. Owns the task that drafts."""

    def __init__(
        self, answer: Answer, sampling: Sampling, drafter: Drafter | None, verifier: Verifier, known: Estimates
    ) -> None:
        self._answer = answer
        self._sampling = sampling
        self._greedy = msgspec.structs.replace(sampling, temperature=0.0)
        self._drafter = drafter
        self._verifier = verifier
        self._known = known
        self._guess = Continuation()
        self._drafted: dict[int, float] = {}
        """Confidences of the tokens drafted, by their places."""
        self._news = asyncio.Event()
        self._speed = 0.0
        """Tokens a second that the answer grows by."""
        self.opened = False
        """Whether a cloud took the last stream that was asked for."""
        self.pace: tuple[int, float] | None = None
        """Tokens after the first of the last stream, and the seconds in which they came; none without a drafter."""

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """The rest of the answer. Raises EndpointError when the cloud is lost; what came before is committed."""
        answer, began = self._answer, time.perf_counter()
        self.opened = False
        stream_of = self._verifier.stream(answer.committed, answer.remaining, self._sampling)
        async with stream_of as stream, _Drafting(self, stream):
            self.opened = True
            if stream.opened_in:
                self._known.network.add(0, stream.opened_in / 2)
            first, count = 0.0, 0
            async for frame in stream:
                now = time.perf_counter()
                first = first or now
                count += len(frame.token_ids)
                self._speed = count / max(now - first, 0.02)
                for chunk in self._commit(frame):
                    yield chunk
                self._news.set()
            end = stream.end
        assert end is not None
        ended = time.perf_counter()
        answer.report.cloud_latency_ms += (ended - began) * 1e3
        if self._drafter is not None and count > 1:
            self.pace = count - 1, ended - first
        self._ended(end, ended - first)

    def _commit(self, frame: TokensFrame) -> list[Chunk]:
        answer = self._answer
        position, chunks = len(answer.committed), []
        accepted, drawn = frame.token_ids[: frame.accepted], frame.token_ids[frame.accepted :]
        if accepted:
            confidences = [self._drafted.get(position + n, 0.0) for n in range(len(accepted))]
            answer.report.accepted += len(accepted)
            chunks.append(answer.commit(accepted, Provenance.ACCEPTED, None, confidences))
        if drawn:
            chunks.append(answer.commit(drawn, Provenance.CLOUD))
        return chunks

    def _ended(self, end: EndFrame, seconds: float) -> None:
        report = self._answer.report
        report.rounds += 1
        report.drafted += end.drafted
        report.cloud_steps += end.steps
        self._answer.finished = end.finish_reason == "stop"
        self._known.stream_came(end.steps, end.drafted, seconds)
        if self._answer.open:
            raise ContextLengthError("the answer has filled the cloud's context")

    async def keep_drafting(self, stream: Stream) -> None:
        """Until cancelled: whenever the answer has grown, drafts what is missing and sends it."""
        answer, guess = self._answer, self._guess
        self._news.set()
        while True:
            await self._news.wait()
            self._news.clear()
            guess.follow(answer.committed, self._known)
            if await self._draft_on():
                guess.follow(answer.committed, self._known)
                if guess.token_ids:
                    await stream.draft(guess.position, guess.token_ids[:LONGEST_DRAFT])

    async def _draft_on(self) -> bool:
        """Makes the guess as long as is worth it, a portion at a time; False if it was already."""
        assert self._drafter is not None
        known, guess, answer = self._known, self._guess, self._answer
        ahead = self._speed * (known.round_trip + known.step_seconds)
        length = stream_draft_length(known.acceptance.right, ahead, LONGEST_DRAFT, cost=known.token_steps)
        length = min(length, answer.remaining - 1)
        missing = min(length - len(guess.token_ids), PORTION)
        if missing <= 0:
            return False
        whole = answer.committed[: guess.position] + guess.token_ids
        draft = await self._drafter.draft(whole, missing, self._greedy)
        if not draft.token_ids:
            return False
        self._drafted.update(zip(range(len(whole), len(whole) + len(draft.token_ids)), draft.confidences, strict=True))
        if answer.report.edge_drawn:  # the first draft's time is the prompt's, too
            known.draft.add(draft.latency_ms / 1e3 / len(draft.token_ids))
        answer.drew(draft)
        guess.extend(draft)
        if missing == PORTION:
            self._news.set()  # there may be more to do
        return True


class _Drafting:
    """The task that drafts for a stream, for as long as the stream is read; its failure is raised at the end."""

    def __init__(self, follower: Follower, stream: Stream) -> None:
        self._follower, self._stream = follower, stream
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        if self._follower._drafter is not None:
            self._task = asyncio.create_task(self._follower.keep_drafting(self._stream))

    async def __aexit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._task is None:
            return
        self._task.cancel()
        (left,) = await asyncio.gather(self._task, return_exceptions=True)
        if kind is None and isinstance(left, Exception):
            raise left
