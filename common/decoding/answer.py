"""One request's answer as it grows: what is committed, where from, and how it came about. Knows no engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from common.decoding.policy import Plan
from common.types import Collaboration, Draft, Provenance, TokenLogprob


@dataclass(frozen=True, slots=True)
class Chunk:
    """Committed tokens of one provenance, in order.

    `logprobs` are the edge model's, where they were asked for; `confidences` of who drew them,
    where they are known.
    """

    token_ids: list[int]
    provenance: Provenance
    logprobs: list[TokenLogprob] | None = None
    confidences: Sequence[float] = ()


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

    @property
    def open(self) -> bool:
        return self.remaining > 0 and not self.finished

    def commit(
        self,
        token_ids: list[int],
        provenance: Provenance,
        logprobs: list[TokenLogprob] | None = None,
        confidences: Sequence[float] = (),
    ) -> Chunk:
        self.committed += token_ids
        self.remaining -= len(token_ids)
        self.report.tokens[provenance] += len(token_ids)
        return Chunk(token_ids, provenance, logprobs, confidences)

    def drew(self, draft: Draft) -> None:
        """Takes what the edge's work on `draft` says about this answer into the report."""
        self.report.edge_latency_ms += draft.latency_ms
        self.report.edge_drawn += len(draft.token_ids)
        self.confidences += draft.confidences

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
        """Tokens committed (the prompt's too), sent in drafts, accepted, so far."""
        return len(self.committed), self.report.drafted, self.report.accepted

    @property
    def finish_reason(self) -> str:
        """`stop` when the model ended the answer itself, `length` when it ran out of tokens."""
        return "stop" if self.finished else "length"
