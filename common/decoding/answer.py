"""One request's answer as it grows: its tokens, where they come from, and the report."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat

from common.decoding.policy import Plan
from common.errors import FrameworkError
from common.routing.router import RouteDecision, Side
from common.tracing.spans import span
from common.types import Collaboration, Draft, DraftSource, FinishReason, Mode, Provenance, TokenLogprob, Verdict

SHOWN_TOKENS = 4
"""Of an answer that a router leaves to the edge: drawn, then shown together. Fewer would cost the edge time."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Committed tokens of one provenance, in order.

    `logprobs`, where requested, are those of the model that gave the tokens: the edge's of `edge`, the cloud's of all
    other provenances; `confidences` are those of the drafter or model that the tokens come from, where known;
    `drafters`: who proposed each accepted token. `round`: the round or stream of a cloud, counted from 1, that verified
    or drew the tokens. `exit`: that of a split model that gave them, as `report.exits` names it.
    """

    token_ids: list[int]
    provenance: Provenance
    logprobs: list[TokenLogprob] | None = None
    confidences: Sequence[float] = ()
    drafters: Sequence[DraftSource] = ()
    round: int | None = None
    exit: str | None = None


@dataclass(slots=True)
class Answer:
    """One request's state. `committed`: token ids of prompt and answer. Only its creator writes to it."""

    plan: Plan
    """Replaced only by `record_route`, `continue_on_edge` and `set_thinking`."""
    committed: list[int]
    remaining: int
    """Tokens that may still be committed."""
    ended: FinishReason | None = None
    """Why the answer ended before all `remaining` tokens; None: it has not."""
    confidences: list[float] = field(default_factory=list)
    lost: FrameworkError | None = None
    """Why the edge goes on alone, if it does."""
    report: Collaboration = field(default_factory=Collaboration)
    prompt_tokens: int = 0
    """Those of the prompt, as the model that answers has it."""
    _sources: list[tuple[Provenance, str | None, DraftSource | None]] = field(default_factory=list)
    """Of each token of the answer: its provenance, the exit that gave it, the drafter that proposed it."""

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.committed)
        self.report.mode, self.report.lossless = self.plan.mode, self.plan.lossless
        self.report.mode_because = self.plan.mode_because

    @property
    def open(self) -> bool:
        return self.remaining > 0 and self.ended is None

    def commit(
        self,
        token_ids: list[int],
        provenance: Provenance,
        logprobs: list[TokenLogprob] | None = None,
        confidences: Sequence[float] = (),
        exit: str | None = None,
        drafters: Sequence[DraftSource] = (),
        round: int | None = None,
    ) -> Chunk:
        """Adds the tokens to the answer. `drafters`: who proposed each of them, if the cloud has accepted them.

        `exit`, `round`: see Chunk.
        """
        self.committed += token_ids
        self.remaining -= len(token_ids)
        sources = [(provenance, exit, drafter) for drafter in drafters or repeat(None, len(token_ids))]
        self._sources += sources
        self._count(sources, 1)
        return Chunk(token_ids, provenance, logprobs, confidences, drafters, round, exit)

    def stop_after(self, tokens: int) -> None:
        """Ends the answer with its first `tokens` tokens, which complete a stop string: the others are no part of it.

        The report still tells the work that was done for them: drafts, rounds, steps.
        """
        self._keep(tokens)
        self.ended = FinishReason.STOP

    def set_thinking(self, thinking: bool) -> None:
        """Tells whether the answer goes on with a thought, for the gate; who reads the answer's text knows."""
        if thinking is not self.plan.thinking:
            self.plan = dataclasses.replace(self.plan, thinking=thinking)

    def record_route(self, decision: RouteDecision) -> None:
        """From here on the side that the router has chosen answers alone, also what follows a thought."""
        assert self.plan.routing is not None, "a router has decided"
        report, to_cloud = self.report, decision.side is Side.CLOUD
        report.routed_to, report.route_score = decision.side, decision.score
        report.route_threshold, report.lossless = decision.threshold, to_cloud
        mode, shown = Mode.CLOUD_ONLY if to_cloud else Mode.EDGE_ONLY, min(self.plan.max_draft_tokens, SHOWN_TOKENS)
        routing = dataclasses.replace(self.plan.routing, settled=decision)
        self.plan = dataclasses.replace(self.plan, mode=mode, routing=routing, max_draft_tokens=shown)

    def withdraw(self) -> None:
        """Takes the whole answer back, of which nothing was shown: another model begins again."""
        self.remaining += len(self._sources)
        self._keep(0)

    def _keep(self, tokens: int) -> None:
        """Drops all but the first `tokens` tokens of the answer."""
        surplus = len(self._sources) - tokens
        self._count(self._sources[tokens:], -1)
        del self._sources[tokens:], self.committed[len(self.committed) - surplus :]

    def _count(self, sources: list[tuple[Provenance, str | None, DraftSource | None]], sign: int) -> None:
        """Adds these tokens to the report, or takes them out again where `sign` is -1."""
        for provenance, exit, drafter in sources:
            self.report.tokens[provenance] += sign
            if exit is not None:
                self.report.exits[exit] += sign
            if drafter is not None:
                self.report.drafters[drafter] += sign

    def commit_kept(self, draft: Draft, keep: int) -> Chunk:
        """Commits the first `keep` (>= 1) tokens of the edge's draft, unverified."""
        self.end_if(draft.finished and keep == len(draft.token_ids))
        logprobs = None if draft.logprobs is None else draft.logprobs[:keep]
        with span("commit") as traced:
            traced.set(edge=keep)
            return self.commit(draft.token_ids[:keep], Provenance.EDGE, logprobs, draft.confidences[:keep])

    def commit_verdict(self, verdict: Verdict, proposed: Draft) -> list[Chunk]:
        """Commits the verdict on `proposed`: first the accepted tokens, then what the cloud drew itself."""
        report, accepted = self.report, verdict.accepted
        drawn = verdict.token_ids[accepted:]
        of_accepted, of_drawn = split_logprobs(verdict.logprobs, accepted)
        report.rounds += 1
        report.cloud_latency_ms += verdict.latency_ms
        report.drafted += len(proposed.token_ids)
        report.accepted += accepted
        report.cloud_steps += 1 if proposed.token_ids else len(drawn)
        self.ended = verdict.finish_reason
        chunks = []
        with span("commit") as traced:
            traced.set(accepted=accepted, drawn=len(drawn))
            if accepted:
                own = proposed.part(0, accepted)
                known = own.confidences, None, own.drafters
                chunks.append(self.commit(own.token_ids, Provenance.ACCEPTED, of_accepted, *known, round=report.rounds))
            if drawn:
                chunks.append(self.commit(drawn, _provenance_after(proposed, accepted), of_drawn, round=report.rounds))
        return chunks

    def end_if(self, finished: bool) -> None:
        """Ends the answer if its model has drawn an end token."""
        self.ended = FinishReason.STOP if finished else self.ended

    def record_draft(self, draft: Draft) -> None:
        """Adds the edge model's work on `draft` to the report."""
        if not self.report.edge_drawn:
            self.report.cached_tokens = draft.reused
        drawn = draft.of_model
        self.report.edge_latency_ms += draft.latency_ms
        self.report.edge_drawn += len(drawn.token_ids)
        self.confidences += drawn.confidences

    def continue_on_edge(self, error: FrameworkError) -> None:
        """From here on the edge answers alone, because of `error`; raises it if the plan has no fallback."""
        if not self.plan.fallback:
            raise error
        self.lost, self.report.degraded, self.report.lossless = error, error.message, False
        self.plan = dataclasses.replace(self.plan, mode=Mode.EDGE_ONLY)

    def close(self) -> None:
        """Completes the report."""
        report = self.report
        if report.drafted:
            report.acceptance_rate = report.accepted / report.drafted
        if self.confidences:
            report.confidence_score = sum(self.confidences) / len(self.confidences)
        kept = report.tokens[Provenance.EDGE] + report.drafters[DraftSource.MODEL]
        report.edge_wasted = max(0, report.edge_drawn - kept)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Tokens committed (the prompt's included), sent in drafts, and accepted so far."""
        return len(self.committed), self.report.drafted, self.report.accepted

    @property
    def finish_reason(self) -> FinishReason:
        """Why the answer ended; `length` also where it ran out of tokens, or the edge's context is full."""
        return self.ended or FinishReason.LENGTH


def split_logprobs(
    logprobs: list[TokenLogprob] | None, accepted: int
) -> tuple[list[TokenLogprob] | None, list[TokenLogprob] | None]:
    """Those of the first `accepted` tokens, and those of the others."""
    return (None, None) if logprobs is None else (logprobs[:accepted], logprobs[accepted:])


def _provenance_after(proposed: Draft, accepted: int) -> Provenance:
    """Of the tokens that the cloud draws after accepting so many of `proposed`."""
    if not proposed.token_ids:
        return Provenance.CLOUD
    return Provenance.BONUS if accepted == len(proposed.token_ids) else Provenance.RECOVERED
