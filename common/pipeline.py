"""The heart: draft -> decide -> verify -> commit -> emit. Knows a drafter and a verifier, no engine, no HTTP."""

import dataclasses
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from common import policy
from common.errors import ContextLengthError, EndpointError, FrameworkError
from common.online_gate import OnlineGate, Round
from common.policy import Ask, Decision, Plan
from common.types import Collaboration, Draft, Mode, Provenance, Sampling, TokenLogprob, Verdict


class Drafter(Protocol):
    """The edge model, in process or over HTTP."""

    async def draft(self, token_ids: Sequence[int], limit: int, sampling: Sampling) -> Draft:
        """Up to `limit` (>= 1) tokens after `token_ids`; whatever it held beyond them is rolled back."""
        ...


class Verifier(Protocol):
    """The cloud model, over HTTP; counts what it sends and receives."""

    @property
    def calls(self) -> int: ...
    @property
    def bytes_up(self) -> int: ...
    @property
    def bytes_down(self) -> int: ...

    async def verify(
        self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Verdict:
        """The cloud's tokens after `token_ids`; up to `max_tokens` more than it accepts. Raises EndpointError."""
        ...


@dataclass(frozen=True, slots=True)
class Chunk:
    """Committed tokens of one provenance, in order; `logprobs` are the edge model's, where they were asked for."""

    token_ids: list[int]
    provenance: Provenance
    logprobs: list[TokenLogprob] | None = None


@dataclass(slots=True)
class Answer:
    """One request's state: what is committed, and how it came about. Whoever made it alone writes it."""

    plan: Plan
    committed: list[int]
    remaining: int
    finished: bool = False
    confidences: list[float] = field(default_factory=list)
    report: Collaboration = field(default_factory=Collaboration)

    def __post_init__(self) -> None:
        self.report.mode, self.report.lossless = self.plan.mode, self.plan.lossless

    def commit(self, token_ids: list[int], provenance: Provenance, logprobs: list[TokenLogprob] | None = None) -> Chunk:
        self.committed += token_ids
        self.remaining -= len(token_ids)
        self.report.tokens[provenance] += len(token_ids)
        return Chunk(token_ids, provenance, logprobs)

    def drew(self, draft: Draft) -> None:
        """Takes what the edge's work on `draft` says about this answer into the report."""
        self.report.edge_latency_ms += draft.latency_ms
        self.confidences += draft.confidences

    def close(self) -> None:
        """Completes the report."""
        if self.report.drafted:
            self.report.acceptance_rate = self.report.accepted / self.report.drafted
        if self.confidences:
            self.report.confidence_score = sum(self.confidences) / len(self.confidences)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Tokens committed (the prompt's too), sent in drafts, accepted, so far."""
        return len(self.committed), self.report.drafted, self.report.accepted

    @property
    def finish_reason(self) -> str:
        """`stop` when the model ended the answer itself, `length` when it ran out of tokens."""
        return "stop" if self.finished else "length"


class Pipeline:
    """Answers one request; `run` yields chunks as they are committed, `answer` tells the rest.

    When the cloud cannot be used the answer goes on from the last committed token on the edge alone, and
    `report.degraded` says why.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        plan: Plan,
        drafter: Drafter,
        verifier: Verifier,
        online: OnlineGate | None = None,
    ) -> None:
        """`online` decides in place of the plan's gate, and learns from every round."""
        self.answer = Answer(plan, list(prompt), max_tokens)
        self._sampling = sampling
        self._guess = msgspec.structs.replace(sampling, temperature=0.0)
        """How drafts are drawn: greedily, under the penalties and the schema that the answer is under."""
        self._drafter = drafter
        self._verifier = verifier
        self._online = online

    async def run(self) -> AsyncGenerator[Chunk, None]:
        answer = self.answer
        try:
            while answer.remaining > 0 and not answer.finished:
                draft = await self._draft()
                decision = (self._online or policy).decide(draft.confidences, answer.plan)
                before = answer.counts
                if decision.keep:
                    yield answer.commit(draft.token_ids[: decision.keep], Provenance.EDGE)
                    answer.finished = draft.finished and decision.keep == len(draft.token_ids)
                if decision.ask is not Ask.NOTHING and answer.remaining > 0:
                    proposed = draft.token_ids[decision.keep :] if decision.ask is Ask.VERIFY else []
                    for chunk in await self._verify(proposed):
                        yield chunk
                elif not decision.keep:
                    return  # the edge's context is full
                self._learn(draft, decision, before)
        finally:
            if self._online:
                self._online.end()
            self._close_report()

    def _learn(self, draft: Draft, decision: Decision, before: tuple[int, int, int]) -> None:
        """Tells the online gate, if there is one, what became of this round."""
        if self._online is None:
            return
        answer = self.answer
        committed, sent, accepted = (now - then for now, then in zip(answer.counts, before, strict=True))
        done = Round(decision.keep, sent, accepted, committed - decision.keep - accepted)
        self._online.learn(draft.confidences, done)
        answer.report.explored += decision.explored

    async def _draft(self) -> Draft:
        answer, plan = self.answer, self.answer.plan
        limit = policy.draft_length(plan, answer.remaining)
        if limit <= 0:
            return Draft([], [], [], False, 0.0)
        draft = await self._drafter.draft(answer.committed, limit, self._guess if plan.asks_cloud else self._sampling)
        answer.drew(draft)
        return draft

    async def _verify(self, proposed: list[int]) -> list[Chunk]:
        answer, report = self.answer, self.answer.report
        proposed = proposed[: answer.remaining - 1]
        stretch = 1 if proposed else min(answer.plan.stretch_tokens, answer.remaining)
        try:
            verdict = await self._verifier.verify(answer.committed, proposed, self._sampling, stretch)
        except (EndpointError, ContextLengthError) as error:
            self._go_on_alone(error)
            return []
        report.rounds += 1
        report.cloud_latency_ms += verdict.latency_ms
        report.drafted += len(proposed)
        report.accepted += verdict.accepted
        return self._commit(verdict, proposed)

    def _commit(self, verdict: Verdict, proposed: list[int]) -> list[Chunk]:
        """The verdict's tokens as chunks: first the accepted ones, then what the cloud drew itself."""
        answer = self.answer
        accepted, drawn = verdict.token_ids[: verdict.accepted], verdict.token_ids[verdict.accepted :]
        if not proposed:
            provenance = Provenance.CLOUD
        elif verdict.accepted == len(proposed):
            provenance = Provenance.BONUS
        else:
            provenance = Provenance.RECOVERED
        answer.finished = verdict.finished
        parts = ((accepted, Provenance.ACCEPTED), (drawn, provenance))
        return [answer.commit(ids, kind) for ids, kind in parts if ids]

    def _go_on_alone(self, error: FrameworkError) -> None:
        report = self.answer.report
        report.degraded = error.message
        report.lossless = False
        self._online = None
        self.answer.plan = dataclasses.replace(self.answer.plan, mode=Mode.EDGE_ONLY)

    def _close_report(self) -> None:
        report, verifier = self.answer.report, self._verifier
        report.cloud_calls, report.bytes_up, report.bytes_down = verifier.calls, verifier.bytes_up, verifier.bytes_down
        self.answer.close()
