"""One request's answer as it grows: its tokens, where they come from, and the report."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.decoding.policy import Plan
from common.errors import FrameworkError
from common.types import Collaboration, Draft, FinishReason, Mode, Provenance, TokenLogprob, Verdict


@dataclass(frozen=True, slots=True)
class Chunk:
    """Committed tokens of one provenance, in order.

    `logprobs` are the edge model's, where requested; `confidences` are those of the model that drew the tokens, where
    known.
    """

    token_ids: list[int]
    provenance: Provenance
    logprobs: list[TokenLogprob] | None = None
    confidences: Sequence[float] = ()


@dataclass(slots=True)
class Answer:
    """One request's state. `committed`: token ids of prompt and answer. Only its creator writes to it."""

    plan: Plan
    """Replaced only by `continue_on_edge`."""
    committed: list[int]
    remaining: int
    """Tokens that may still be committed."""
    ended: FinishReason | None = None
    """Why the answer ended before all `remaining` tokens; None: it has not."""
    confidences: list[float] = field(default_factory=list)
    lost: FrameworkError | None = None
    """Why the edge goes on alone, if it does."""
    report: Collaboration = field(default_factory=Collaboration)
    _sources: list[tuple[Provenance, str | None]] = field(default_factory=list)
    """Of each token of the answer: its provenance, and the exit that gave it."""

    def __post_init__(self) -> None:
        self.report.mode, self.report.lossless = self.plan.mode, self.plan.lossless

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
    ) -> Chunk:
        """Adds the tokens to the answer. `exit`: that of a split model that gave them, as `report.exits` names it."""
        self.committed += token_ids
        self.remaining -= len(token_ids)
        self._sources += [(provenance, exit)] * len(token_ids)
        self._count(len(token_ids), provenance, exit)
        return Chunk(token_ids, provenance, logprobs, confidences)

    def stop_after(self, tokens: int) -> None:
        """Ends the answer with its first `tokens` tokens, which complete a stop string: the others are no part of it.

        The report still tells the work that was done for them: drafts, rounds, steps.
        """
        surplus = len(self._sources) - tokens
        for provenance, exit in self._sources[tokens:]:
            self._count(-1, provenance, exit)
        del self._sources[tokens:], self.committed[len(self.committed) - surplus :]
        self.ended = FinishReason.STOP

    def _count(self, tokens: int, provenance: Provenance, exit: str | None) -> None:
        self.report.tokens[provenance] += tokens
        if exit is not None:
            self.report.exits[exit] += tokens

    def commit_kept(self, draft: Draft, keep: int) -> Chunk:
        """Commits the first `keep` (>= 1) tokens of the edge's draft, unverified."""
        self.end_if(draft.finished and keep == len(draft.token_ids))
        return self.commit(draft.token_ids[:keep], Provenance.EDGE, None, draft.confidences[:keep])

    def commit_verdict(self, verdict: Verdict, proposed: Draft) -> list[Chunk]:
        """Commits the verdict on `proposed`: first the accepted tokens, then what the cloud drew itself."""
        report, accepted = self.report, verdict.accepted
        drawn = verdict.token_ids[accepted:]
        report.rounds += 1
        report.cloud_latency_ms += verdict.latency_ms
        report.drafted += len(proposed.token_ids)
        report.accepted += accepted
        report.cloud_steps += 1 if proposed.token_ids else len(drawn)
        self.ended = verdict.finish_reason
        chunks = []
        if accepted:
            confidences = proposed.confidences[:accepted]
            chunks.append(self.commit(verdict.token_ids[:accepted], Provenance.ACCEPTED, None, confidences))
        if drawn:
            chunks.append(self.commit(drawn, _provenance_after(proposed, accepted)))
        return chunks

    def end_if(self, finished: bool) -> None:
        """Ends the answer if its model has drawn an end token."""
        self.ended = FinishReason.STOP if finished else self.ended

    def record_draft(self, draft: Draft) -> None:
        """Adds the edge's work on `draft` to the report."""
        self.report.edge_latency_ms += draft.latency_ms
        self.report.edge_drawn += len(draft.token_ids)
        self.confidences += draft.confidences

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
        kept = report.tokens[Provenance.EDGE] + report.tokens[Provenance.ACCEPTED]
        report.edge_wasted = max(0, report.edge_drawn - kept)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Tokens committed (the prompt's included), sent in drafts, and accepted so far."""
        return len(self.committed), self.report.drafted, self.report.accepted

    @property
    def finish_reason(self) -> FinishReason:
        """Why the answer ended; `length` also where it ran out of tokens, or the edge's context is full."""
        return self.ended or FinishReason.LENGTH


def _provenance_after(proposed: Draft, accepted: int) -> Provenance:
    """Of the tokens that the cloud draws after accepting so many of `proposed`."""
    if not proposed.token_ids:
        return Provenance.CLOUD
    return Provenance.BONUS if accepted == len(proposed.token_ids) else Provenance.RECOVERED
