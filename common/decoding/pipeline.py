"""The heart of the project: draft → decide → verify → commit → emit, for one request."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from common.decoding import policy, throughput
from common.decoding.answer import Answer, Chunk
from common.decoding.drafters.answer_drafter import AnswerDrafter
from common.decoding.estimates import AnswerEstimates, Estimates
from common.decoding.interfaces import Drafter, Verifier, holds_nothing
from common.decoding.online_gate import GateRound, OnlineGate
from common.decoding.policy import Decision, Escalation, Gate, choose_verification_mode
from common.decoding.request import DecodingRequest
from common.decoding.streaming import Follower
from common.errors import ContextLengthError, EndpointError
from common.lookup.lookup import Lookup
from common.routing.router import Side
from common.tracing.spans import span
from common.types import Draft, Mode, VerificationMode


class Pipeline:
    """Answers one request: `run` yields chunks as they are committed, `answer` holds the state and the report.

    When no cloud can be used, the edge alone continues after the last committed token and `report.degraded` says why.
    What the answer reveals about network and engines goes into `estimates`.
    """

    def __init__(
        self,
        request: DecodingRequest,
        drafter: Drafter,
        verifier: Verifier,
        estimates: Estimates | None = None,
        online: OnlineGate | None = None,
        lookup: Lookup | None = None,
        release: Callable[[], Awaitable[None]] = holds_nothing,
    ) -> None:
        """`online` decides in place of the plan's gate, and learns from every round; `lookup` drafts, too.

        `release`: of what the drafter holds, where the cloud goes on alone.
        """
        sampling = request.sampling
        self.answer = Answer(request.plan, list(request.prompt), request.max_tokens)
        self._prompt_tokens = len(request.prompt)
        self._sampling = sampling
        self._verifier = verifier
        self._estimates = estimates or Estimates()
        seeded = sampling.temperature > 0 and sampling.seed is not None
        self._basis = Estimates() if seeded else self._estimates
        """What decisions rest on: nothing that was measured where a seed must repeat the answer."""
        self._text = AnswerEstimates(self._basis)
        self._online = online
        self._drafts = AnswerDrafter(self.answer, sampling, drafter, lookup, self._text.current, self._own_gate)
        self._release = release
        self._verdicts: list[tuple[float, int, int]] = []
        """For each verdict its time, the tokens committed with it, and those that the cloud had computed."""

    async def run(self) -> AsyncGenerator[Chunk, None]:
        """The chunks of the answer. Close it to stop early: the report is then completed all the same."""
        plan = self.answer.plan
        with self._estimates.answer_under_way() as active:
            if plan.asks_cloud and plan.mode is not Mode.ROUTE:
                self.answer.report.way = choose_verification_mode(plan, self._basis)
            try:
                # A stream goes on in rounds where its cloud is lost; rounds as a stream where that is faster.
                for part in (self._route, self._stream, self._rounds, self._stream, self._rounds):
                    async with self._drafts, aclosing(part()) as chunks:
                        async for chunk in chunks:
                            if not self.answer.plan.asks_cloud:
                                active.leave_cloud()
                            yield chunk
            finally:
                self._close()

    async def _route(self) -> AsyncGenerator[Chunk, None]:
        """Mode route: the edge's first tokens, if it is to go on; the cloud answers from the beginning."""
        answer, routing = self.answer, self.answer.plan.routing
        if answer.plan.mode is not Mode.ROUTE:
            return
        assert routing is not None, "who resolves a request in mode route gives its plan a router"
        with span("route") as traced:
            draft = await self._draft()
            decision = routing.decide(draft.confidences, draft.finished)
            answer.record_route(decision)
            traced.set(side=decision.side.value, score=decision.score, drafted=len(draft.token_ids))
            if decision.side is Side.CLOUD:
                await self._release()
                answer.report.way = choose_verification_mode(answer.plan, self._basis)
            elif draft.token_ids:
                yield answer.commit_kept(draft, len(draft.token_ids))

    async def _rounds(self) -> AsyncGenerator[Chunk, None]:
        """Round by round until the answer is complete; the edge alone continues here after a cloud is lost."""
        answer, held = self.answer, list[Chunk]()
        while answer.open:
            with span("round") as traced:
                draft = await self._draft()
                decision = (self._gate or policy).decide(draft.confidences, answer.plan)
                traced.set(drafted=len(draft.token_ids), kept=decision.keep, asked=decision.ask.value)
                before = answer.counts
                if decision.keep:
                    held.append(answer.commit_kept(draft, decision.keep))
                while held and not (answer.plan.holds_back and answer.open):
                    yield held.pop(0)
                if decision.ask is not Escalation.NOTHING and answer.remaining > 0:
                    if answer.plan.handover is not None:
                        self._hand_over()
                        return
                    for chunk in await self._verify(await self._drafts.proposed(draft, decision)):
                        yield chunk
                    if self._is_faster_as_stream():
                        answer.report.way = VerificationMode.CONTINUOUS
                        return
                elif not decision.keep:  # the edge's context is full
                    if len(answer.committed) == self._prompt_tokens:
                        raise answer.lost or ContextLengthError("the prompt fills the edge's context")
                    return
                self._learn(draft, decision, before)

    def _hand_over(self) -> None:
        """The cloud goes on in one stream to the end; from the beginning, if nothing was shown."""
        self.answer.report.way = VerificationMode.CONTINUOUS
        if self.answer.plan.holds_back:
            self.answer.withdraw()

    def _is_faster_as_stream(self) -> bool:
        """Whether what this answer has shown of itself speaks for another mode than the one it began with."""
        plan, text = self.answer.plan, self._text.current()
        if self._basis is not self._estimates or not plan.asks_cloud:
            return False
        if plan.gated:
            return not self._gate and policy.gate_in_vain(plan, self._gated_pace(), text)
        return choose_verification_mode(plan, text) is VerificationMode.CONTINUOUS

    def _gated_pace(self) -> policy.GatedPace:
        (began, *before), (ended, *now) = self._verdicts[0], self._verdicts[-1]
        tokens, computed = (after - then for after, then in zip(now, before, strict=True))
        return policy.GatedPace(tokens, computed, len(self._verdicts) - 1, ended - began)

    async def _stream(self) -> AsyncGenerator[Chunk, None]:
        """The cloud's own stream, with drafts for it, on another cloud if one is lost; ends early without a cloud."""
        answer = self.answer
        plain = answer.plan.mode is Mode.CLOUD_ONLY or answer.plan.handover is not None
        drafter = None if plain else self._drafts.drafter
        follower = Follower(answer, self._sampling, drafter, self._verifier, self._estimates, self._text)
        while answer.open and answer.plan.asks_cloud and answer.report.way is VerificationMode.CONTINUOUS:
            try:
                async with aclosing(follower.chunks()) as chunks:
                    async for chunk in chunks:
                        yield chunk
                if follower.pace:
                    self._observe_speed(VerificationMode.CONTINUOUS, *follower.pace)
            except EndpointError as error:
                if not follower.opened:  # otherwise the next attempt may find another cloud
                    answer.continue_on_edge(error)
            except ContextLengthError as error:
                answer.continue_on_edge(error)

    async def _draft(self) -> Draft:
        draft = await self._drafts.draft()
        self._estimates.observe_draft(draft.of_model, self.answer.report.edge_drawn)
        self.answer.record_draft(draft)
        return draft

    async def _verify(self, proposed: Draft) -> list[Chunk]:
        """The cloud verifies `proposed`, or generates by itself if that is empty, while the edge drafts ahead."""
        answer, verifier = self.answer, self._verifier
        max_tokens = 1 if proposed.token_ids else min(answer.plan.stretch_tokens, answer.remaining)
        self._drafts.start_ahead(proposed)
        bytes_before, active = verifier.traffic.payload, self._estimates.active
        try:
            verdict = await verifier.verify(answer.committed, proposed.token_ids, self._sampling, max_tokens)
        except (EndpointError, ContextLengthError) as error:
            answer.continue_on_edge(error)
            return []
        payload = verifier.traffic.payload - bytes_before
        active = max(active, self._estimates.active)
        self._estimates.observe_round(proposed, verdict, payload, answer.report.rounds, active)
        self._text.acceptance.add(proposed.confidences, verdict.accepted)
        chunks = answer.commit_verdict(verdict, proposed)
        computed = answer.report.drafted + answer.report.cloud_steps
        self._verdicts.append((asyncio.get_running_loop().time(), len(answer.committed), computed))
        return chunks

    @property
    def _gate(self) -> OnlineGate | None:
        """The online gate, if there is one and the cloud still takes part."""
        return self._online if self.answer.plan.asks_cloud else None

    def _own_gate(self) -> Gate | None:
        """What decides in place of the plan's gate."""
        return self._gate.gate if self._gate else None

    def _learn(self, draft: Draft, decision: Decision, before: tuple[int, int, int]) -> None:
        """Reports this round to the online gate; `before` are the answer's counts at its beginning."""
        if not (gate := self._gate):
            return
        committed, sent, accepted = (now - then for now, then in zip(self.answer.counts, before, strict=True))
        round = GateRound(decision.keep, sent, accepted, committed - decision.keep - accepted)
        gate.learn(draft.confidences, round)
        self.answer.report.explored += decision.explored

    def _observe_speed(self, mode: VerificationMode, tokens: int, seconds: float) -> None:
        """Compares `tokens` in `seconds`, those after the answer's first ones, with what was expected."""
        plan = self.answer.plan
        expected = throughput.of_mode(mode, self._estimates, plan.max_draft_tokens, plan.draft_ahead)
        if expected.length:
            self._estimates.observe_speed(mode, tokens, expected.speed * seconds)

    def _close(self) -> None:
        """Learns from the answer as a whole, and completes the report."""
        answer, report, traffic = self.answer, self.answer.report, self._verifier.traffic
        if len(self._verdicts) > 1 and answer.plan.lossless:
            (began, first, _), (ended, last, _) = self._verdicts[0], self._verdicts[-1]
            self._observe_speed(VerificationMode.ROUNDS, last - first, ended - began)
        if gate := self._gate:
            gate.end()
        report.cloud_calls, report.bytes_up, report.bytes_down = traffic.calls, traffic.bytes_up, traffic.bytes_down
        self._drafts.close()
        answer.close()
