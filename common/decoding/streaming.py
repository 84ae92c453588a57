"""Continuous verification: commits the cloud's stream as it arrives, and sends drafts to follow its newest token."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

import msgspec

from common.decoding.answer import Answer, Chunk, split_logprobs
from common.decoding.draft_yield import EarlyStop
from common.decoding.drafters.draft_length import stream_length
from common.decoding.estimates import AnswerEstimates, Estimates
from common.decoding.interfaces import Drafter, Stream, Verifier
from common.errors import GrammarError, OverloadedError
from common.protocol.prefix_hash import common_prefix
from common.protocol.stream_frames import LONGEST_DRAFT, EndFrame, TokensFrame
from common.tracing.spans import span
from common.types import Draft, DraftSource, Provenance, Sampling

PORTION = 4
"""Tokens drafted at a time, before new tokens of the answer are looked for."""


class Continuation:
    """The edge's guess at what follows the first `position` tokens, with its confidences."""

    def __init__(self) -> None:
        self.position = 0
        self.token_ids: list[int] = []
        self.confidences: list[float] = []
        self._run = 0
        """Length of the run of right guesses that ends at `position`."""

    def follow(self, committed: list[int], estimates: Estimates, text: AnswerEstimates) -> None:
        """Moves on to the end of `committed` and drops what contradicts it; both estimates learn from either."""
        new = committed[self.position :]
        right = common_prefix(new, self.token_ids)
        seen = min(len(new), len(self.token_ids), right + 1)
        estimates.observe_stream_draft(self.confidences[:seen], right, self._run)
        text.acceptance.add(self.confidences[:seen], right, self._run)
        self._run = self._run + right if right == seen else 0
        keep = right if right == len(new) else len(self.token_ids)
        del self.token_ids[:keep], self.confidences[:keep]
        self.position = len(committed)

    def extend(self, draft: Draft) -> None:
        self.token_ids += draft.token_ids
        self.confidences += draft.confidences


class Follower:
    """Reads one answer as a stream and drafts for it; plain streaming without a `drafter`. Owns the drafting task."""

    def __init__(
        self,
        answer: Answer,
        sampling: Sampling,
        drafter: Drafter | None,
        verifier: Verifier,
        estimates: Estimates,
        text: AnswerEstimates,
    ) -> None:
        self._answer = answer
        self._sampling = sampling
        self._greedy = msgspec.structs.replace(sampling, temperature=0.0)
        self._drafter = drafter
        self._verifier = verifier
        self._estimates = estimates
        self._guess = Continuation()
        self._drafted: dict[int, tuple[float, DraftSource]] = {}
        """Confidence and drafter of the tokens drafted, by their positions."""
        self._text = text
        self._new_tokens = asyncio.Event()
        self._speed = 0.0
        """Tokens per second by which the answer grows."""
        self.opened = False
        """Whether a cloud accepted the last stream."""
        self.pace: tuple[int, float] | None = None
        """Tokens after the first of the last stream, and their seconds; None without a drafter."""

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """The rest of the answer. Raises EndpointError when the cloud is lost, after committing what arrived before."""
        answer, time = self._answer, asyncio.get_running_loop().time
        self.opened = False
        began, first, count, accepted, active = time(), 0.0, 0, 0, list[int]()
        end: EndFrame | None = None
        opening = self._verifier.stream(answer.committed, answer.remaining, self._sampling)
        try:
            async with opening as stream, _Drafting(self, stream):
                self.opened = True
                self._estimates.observe_handshakes(stream.handshake_seconds)
                async for frame in stream:
                    now = time()
                    first = first or now
                    active.append(self._estimates.active)
                    count, accepted = count + len(frame.token_ids), accepted + frame.accepted
                    self._speed = count / max(now - first, 0.02)
                    for chunk in self._commit(frame):
                        yield chunk
                    self._new_tokens.set()
                end = stream.end
        finally:
            answer.report.cloud_latency_ms += (time() - began) * 1e3
            if end is None and count:
                self._record_part(count, accepted)
        assert end is not None
        arriving, computing = time() - first, end.cloud_ms / 1e3
        if self._drafter is not None and len(active) > 1:
            self.pace = count - 1, max(arriving, computing)
        self._finish(end, computing or arriving, active)

    def _record_part(self, count: int, accepted: int) -> None:
        """Reports a stream that ended without its last frame: at a stop string, or because its cloud was lost.

        Each step draws one token after those of the draft that it accepts. What it rejected only the last frame tells.
        """
        report = self._answer.report
        report.rounds += 1
        report.cloud_steps += count - accepted
        report.drafted += accepted

    def _commit(self, frame: TokensFrame) -> list[Chunk]:
        answer = self._answer
        position, chunks, round = len(answer.committed), [], answer.report.rounds + 1
        accepted, drawn = frame.token_ids[: frame.accepted], frame.token_ids[frame.accepted :]
        of_accepted, of_drawn = split_logprobs(frame.logprobs, frame.accepted)
        if accepted:
            unknown = 0.0, DraftSource.MODEL
            drafted = [self._drafted.get(position + n, unknown) for n in range(len(accepted))]
            confidences, drafters = [confidence for confidence, _ in drafted], [drafter for _, drafter in drafted]
            answer.report.accepted += len(accepted)
            known = confidences, None, drafters
            chunks.append(answer.commit(accepted, Provenance.ACCEPTED, of_accepted, *known, round=round))
        if drawn:
            chunks.append(answer.commit(drawn, Provenance.CLOUD, of_drawn, round=round))
        answer.ended = (
            frame.finish_reason or answer.ended
        )  # should the last frame be lost, nothing is asked for behind the end
        return chunks

    def _finish(self, end: EndFrame, seconds: float, active: list[int]) -> None:
        """`seconds`: the cloud's own, where they are known: a busy machine, or a proxy, may pass all frames on at once.

        `active`: answers under way at each frame; a single frame has no pace.
        """
        report = self._answer.report
        report.rounds += 1
        report.drafted += end.drafted
        report.cloud_steps += end.steps
        report.cached_tokens = report.cached_tokens if report.edge_drawn else end.cached_tokens
        self._answer.ended = end.finish_reason
        if len(active) > 1:
            self._estimates.observe_stream(end.steps, end.drafted, seconds, sum(active) / len(active))

    async def keep_drafting(self, stream: Stream) -> None:
        """Until cancelled: whenever the answer has grown, extends the guess and sends it.

        An edge that is too busy, or whose grammar cannot follow the answer, does not draft: the stream needs no drafts.
        """
        with suppress(OverloadedError, GrammarError):
            await self._keep_drafting(stream)

    async def _keep_drafting(self, stream: Stream) -> None:
        answer, guess = self._answer, self._guess
        self._new_tokens.set()
        while True:
            await self._new_tokens.wait()
            self._new_tokens.clear()
            guess.follow(answer.committed, self._estimates, self._text)
            if await self._extend_guess():
                guess.follow(answer.committed, self._estimates, self._text)
                if guess.token_ids:
                    await stream.draft(guess.position, guess.token_ids[:LONGEST_DRAFT])

    async def _extend_guess(self) -> bool:
        """Drafts up to PORTION more tokens of the guess; False if it is long enough or nothing can be drafted."""
        assert self._drafter is not None
        estimates, guess, answer = self._estimates, self._guess, self._answer
        in_flight_tokens = self._speed * (estimates.round_trip + estimates.step_seconds)
        length = stream_length(answer.plan, answer.remaining, in_flight_tokens, self._text.current())
        missing = min(length.limit - len(guess.token_ids), PORTION)
        early = EarlyStop(length.stop)
        if missing <= 0 or early.ends_within(guess.confidences):
            return False
        context = answer.committed[: guess.position] + guess.token_ids
        with span("draft") as traced:
            draft = await self._drafter.draft(context, missing, self._greedy, stop=early.rest)
            traced.set(limit=missing, tokens=len(draft.token_ids), reused=draft.reused)
        if not draft.token_ids:
            return False
        positions = range(len(context), len(context) + len(draft.token_ids))
        self._drafted.update(zip(positions, zip(draft.confidences, draft.drafters, strict=True), strict=True))
        estimates.observe_draft(draft.of_model, answer.report.edge_drawn)
        answer.record_draft(draft)
        guess.extend(draft)
        if len(draft.token_ids) == PORTION:
            self._new_tokens.set()  # the guess may not be long enough yet
        return True


class _Drafting:
    """Runs the drafting task of a stream while the stream is read, and raises the task's failure at the end."""

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
        (outcome,) = await asyncio.gather(self._task, return_exceptions=True)
        if kind is None and isinstance(outcome, Exception):
            raise outcome
