"""The heart: draft -> decide -> verify -> commit -> emit. Knows a drafter and a verifier, no engine, no HTTP."""

import dataclasses
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from common.decoding import policy, throughput
from common.decoding.answer import Answer, Chunk
from common.decoding.draft_ahead import DraftAhead
from common.decoding.estimates import Estimates
from common.decoding.interfaces import Drafter, Verifier
from common.decoding.online_gate import GateRound, OnlineGate
from common.decoding.policy import Decision, Escalation
from common.decoding.request import DecodingRequest
from common.decoding.streaming import Follower
from common.errors import ContextLengthError, EndpointError, FrameworkError
from common.types import NO_DRAFT, Draft, Mode, Provenance, Verdict, VerificationMode


class Pipeline:
    """Answers one request; `run` yields chunks as they are committed, `answer` tells the rest.

    When the cloud cannot be used the answer goes on from the last committed token on the edge alone, and
    `report.degraded` says why. What the answer shows of network and engines goes into `estimates`.
    """

    def __init__(
        self,
        request: DecodingRequest,
        drafter: Drafter,
        verifier: Verifier,
        estimates: Estimates | None = None,
        online: OnlineGate | None = None,
    ) -> None:
        """`online` decides in place of the plan's gate, and learns from every round."""
        self.answer = Answer(request.plan, list(request.prompt), request.max_tokens)
        sampling = self._sampling = request.sampling
        self._guess = msgspec.structs.replace(sampling, temperature=0.0)
        """How drafts are drawn: greedily, under the penalties and the schema that the answer is under."""
        self._drafter = drafter
        self._ahead = DraftAhead(drafter)
        self._verifier = verifier
        self._known = estimates or Estimates()
        seeded = sampling.temperature > 0 and sampling.seed is not None
        self._basis = Estimates() if seeded else self._known
        """What decisions rest on: for an answer that a seed is to repeat, nothing that was measured."""
        self._online = online
        self._verdicts: list[tuple[float, int]] = []
        """When each came, and how many tokens were committed then."""
        self._alone = True
        """Whether no other answer was under way when this one began."""

    async def run(self) -> AsyncGenerator[Chunk, None]:
        answer = self.answer
        answer.report.way = policy.way_of(answer.plan, self._basis) if answer.plan.asks_cloud else None
        self._alone = not self._known.active
        self._known.active += 1
        try:
            if answer.report.way is VerificationMode.CONTINUOUS:
                async with aclosing(self._stream()) as chunks:
                    async for chunk in chunks:
                        yield chunk
            async with self._ahead, aclosing(self._rounds()) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            if len(self._verdicts) > 1 and answer.plan.lossless:
                (begun, before), (ended, after) = self._verdicts[0], self._verdicts[-1]
                self._came(VerificationMode.ROUNDS, after - before, ended - begun)
            self._known.active -= 1
            if self._online:
                self._online.end()
            self._close_report()

    async def _rounds(self) -> AsyncGenerator[Chunk, None]:
        answer = self.answer
        while answer.open:
            draft = await self._draft()
            decision = (self._online or policy).decide(draft.confidences, answer.plan)
            before = answer.counts
            if decision.keep:
                kept = draft.token_ids[: decision.keep]
                yield answer.commit(kept, Provenance.EDGE, None, draft.confidences[: decision.keep])
                answer.finished = draft.finished and decision.keep == len(draft.token_ids)
            if decision.ask is not Escalation.NOTHING and answer.remaining > 0:
                sent = (
                    part(draft, decision.keep, answer.remaining - 1) if decision.ask is Escalation.VERIFY else NO_DRAFT
                )
                for chunk in await self._verify(sent):
                    yield chunk
            elif not decision.keep:
                return  # the edge's context is full
            self._learn(draft, decision, before)

    def _learn(self, draft: Draft, decision: Decision, before: tuple[int, int, int]) -> None:
        """Tells the online gate, if there is one, what became of this round."""
        if self._online is None:
            return
        answer = self.answer
        committed, sent, accepted = (now - then for now, then in zip(answer.counts, before, strict=True))
        self._online.learn(
            draft.confidences, GateRound(decision.keep, sent, accepted, committed - decision.keep - accepted)
        )
        answer.report.explored += decision.explored

    def _came(self, way: VerificationMode, tokens: int, seconds: float) -> None:
        """So many tokens this way after the first ones: a lesson for the next answer."""
        plan, known = self.answer.plan, self._known
        pace = throughput.of_way(way, known, plan.max_draft_tokens, plan.draft_ahead)
        if pace.length and self._alone:
            known.came(way, tokens, pace.speed * seconds)

    async def _draft(self) -> Draft:
        answer, plan = self.answer, self.answer.plan
        length = policy.draft_length(plan, answer.remaining, self._basis)
        if length.limit <= 0:
            return NO_DRAFT
        sampling = self._guess if plan.asks_cloud else self._sampling
        draft = await self._ahead.draft(answer.committed, length.limit, sampling, length.stop_below)
        if answer.report.edge_drawn and draft.token_ids:  # the first draft's time is the prompt's, too
            self._known.draft.add(draft.latency_ms / 1e3 / len(draft.token_ids))
        answer.drew(draft)
        return draft

    async def _verify(self, proposed: Draft) -> list[Chunk]:
        """Has the cloud verify `proposed`, or go on by itself if that is empty, while the edge drafts ahead."""
        answer = self.answer
        stretch = 1 if proposed.token_ids else min(answer.plan.stretch_tokens, answer.remaining)
        self._draft_ahead(proposed)
        before = self._verifier.bytes_up + self._verifier.bytes_down
        try:
            verdict = await self._verifier.verify(answer.committed, proposed.token_ids, self._sampling, stretch)
        except (EndpointError, ContextLengthError) as error:
            self._go_on_alone(error)
            return []
        if verdict.cloud_ms and answer.report.rounds and proposed.token_ids:  # the first round's time is the prompt's
            payload = self._verifier.bytes_up + self._verifier.bytes_down - before
            latency, cloud = verdict.latency_ms / 1e3, verdict.cloud_ms / 1e3
            self._known.round_came(len(proposed.token_ids), latency, cloud, payload)
        self._known.acceptance.add(proposed.confidences, verdict.accepted)
        chunks = self._commit(verdict, proposed)
        self._verdicts.append((time.perf_counter(), len(answer.committed)))
        return chunks

    def _draft_ahead(self, proposed: Draft) -> None:
        answer, plan = self.answer, self.answer.plan
        left = answer.remaining - len(proposed.token_ids) - 1
        if not (plan.draft_ahead and proposed.token_ids) or proposed.finished:
            return
        length = policy.draft_length(plan, left, self._basis)
        if length.limit > 0:
            self._ahead.go_on(answer.committed + proposed.token_ids, length.limit, self._guess, length.stop_below)

    def _commit(self, verdict: Verdict, proposed: Draft) -> list[Chunk]:
        """The verdict's tokens as chunks: first the accepted ones, then what the cloud drew itself."""
        answer, report = self.answer, self.answer.report
        report.rounds += 1
        report.cloud_latency_ms += verdict.latency_ms
        report.drafted += len(proposed.token_ids)
        report.accepted += verdict.accepted
        accepted, drawn = verdict.token_ids[: verdict.accepted], verdict.token_ids[verdict.accepted :]
        report.cloud_steps += 1 if proposed.token_ids else len(drawn)
        if not proposed.token_ids:
            provenance = Provenance.CLOUD
        elif verdict.accepted == len(proposed.token_ids):
            provenance = Provenance.BONUS
        else:
            provenance = Provenance.RECOVERED
        answer.finished = verdict.finished
        chunks = []
        if accepted:
            confidences = proposed.confidences[: len(accepted)]
            chunks.append(answer.commit(accepted, Provenance.ACCEPTED, None, confidences))
        if drawn:
            chunks.append(answer.commit(drawn, provenance))
        return chunks

    async def _stream(self) -> AsyncGenerator[Chunk, None]:
        """The cloud's own stream, with drafts for it; ends early if the cloud is lost."""
        drafter = None if self.answer.plan.mode is Mode.CLOUD_ONLY else self._drafter
        follower = Follower(self.answer, self._sampling, drafter, self._verifier, self._known)
        while self.answer.open and self.answer.plan.asks_cloud:
            try:
                async with aclosing(follower.chunks()) as chunks:
                    async for chunk in chunks:
                        yield chunk
                if follower.pace:
                    self._came(VerificationMode.CONTINUOUS, *follower.pace)
            except EndpointError as error:
                if not follower.opened:  # else another cloud may go on
                    self._go_on_alone(error)
            except ContextLengthError as error:
                self._go_on_alone(error)

    def _go_on_alone(self, error: FrameworkError) -> None:
        report = self.answer.report
        if not self.answer.plan.fallback:
            raise error
        report.degraded = error.message
        report.lossless = False
        self._online = None
        self.answer.plan = dataclasses.replace(self.answer.plan, mode=Mode.EDGE_ONLY)

    def _close_report(self) -> None:
        report, verifier = self.answer.report, self._verifier
        report.cloud_calls, report.bytes_up, report.bytes_down = verifier.calls, verifier.bytes_up, verifier.bytes_down
        report.edge_drawn += self._ahead.wasted
        self.answer.close()


def part(draft: Draft, begin: int, limit: int) -> Draft:
    """Up to `limit` of the draft's tokens from place `begin` on."""
    end = begin + limit
    return Draft(
        draft.token_ids[begin:end],
        draft.probs[begin:end],
        draft.confidences[begin:end],
        draft.finished and end >= len(draft.token_ids),
        draft.latency_ms,
    )
