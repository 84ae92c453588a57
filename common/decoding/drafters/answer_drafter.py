"""The drafts of one answer: as long as they pay, ahead of verdicts, and looked up where that is better."""

from collections.abc import Callable
from dataclasses import replace
from typing import Self

import msgspec

from common.decoding.answer import Answer
from common.decoding.drafters.draft_ahead import DraftAhead
from common.decoding.drafters.draft_length import Length, draft_length
from common.decoding.drafters.lookup_drafter import LookupDrafter
from common.decoding.estimates import Estimates
from common.decoding.interfaces import Drafter
from common.decoding.policy import Decision, Escalation, Gate
from common.errors import GrammarError
from common.lookup.lookup import Lookup
from common.types import NO_DRAFT, Draft, Sampling


class AnswerDrafter:
    """Drafts for `answer`, whose report gets the work; use `async with`: leaving cancels what is drafted ahead.

    `estimates`: those of this answer, now. `gate`: the one that decides in place of the plan's, if there is any.
    """

    def __init__(
        self,
        answer: Answer,
        sampling: Sampling,
        drafter: Drafter,
        lookup: Lookup | None,
        estimates: Callable[[], Estimates],
        gate: Callable[[], Gate | None],
    ) -> None:
        self._answer = answer
        self._sampling = sampling
        self._draft_sampling = msgspec.structs.replace(sampling, temperature=0.0)
        """Drafts are greedy, under the penalties and the grammar of the answer."""
        self._lookup_drafter = LookupDrafter(drafter, lookup, answer) if lookup else None
        self.drafter = self._lookup_drafter or drafter
        """What drafts, without regard to length."""
        self._ahead = DraftAhead(self.drafter)
        self._estimates = estimates
        self._gate = gate
        self._follows = True
        """Whether the edge's model follows the answer: not if its grammar cannot."""

    async def __aenter__(self) -> Self:
        await self._ahead.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._ahead.__aexit__(*error)

    async def draft(self) -> Draft:
        """The next draft: greedy, unless it may be the answer itself; raises GrammarError only where it would be."""
        answer, plan = self._answer, self._answer.plan
        length = self._length(answer.remaining)
        if length.limit <= 0 or (plan.asks_cloud and not self._follows):
            return NO_DRAFT
        sampling = self._sampling if plan.samples_at_edge else self._draft_sampling
        try:
            return await self._ahead.draft(answer.committed, length.limit, sampling, length.stop)
        except GrammarError:
            self._follows = False
            if not plan.asks_cloud:
                raise
            return NO_DRAFT

    async def proposed(self, draft: Draft, decision: Decision) -> Draft:
        """What the cloud is asked about: the rest of the draft; of a gated one, what is looked up if that is likelier.

        An online gate learns from what the cloud says of the model's own tokens, so these are sent.
        """
        if decision.ask is not Escalation.VERIFY:
            return NO_DRAFT
        plan, limit = self._answer.plan, self._answer.remaining - 1
        rest = draft.part(decision.keep, limit)
        if self._lookup_drafter is None or not plan.gated or self._gate():
            return rest
        return await self._lookup_drafter.instead_of(rest, min(limit, plan.max_draft_tokens))

    def start_ahead(self, proposed: Draft) -> None:
        """Begins the draft after `proposed` and the bonus token, while the cloud verifies it."""
        answer, plan = self._answer, self._answer.plan
        remaining = answer.remaining - len(proposed.token_ids) - 1
        if not (plan.draft_ahead and proposed.token_ids) or proposed.finished:
            return
        length = self._length(remaining)
        if length.limit > 0:
            guess = answer.committed + proposed.token_ids
            self._ahead.start(guess, length.limit, self._draft_sampling, length.stop)

    def close(self) -> None:
        """Completes the report."""
        report = self._answer.report
        report.edge_drawn += self._ahead.wasted
        if self._lookup_drafter:
            report.predicted = self._lookup_drafter.predicted

    def _length(self, remaining: int) -> Length:
        """How much to draft when `remaining` tokens may still be committed, under the gate that will decide."""
        plan = self._answer.plan
        if gate := self._gate():
            plan = replace(plan, gate=gate)
        return draft_length(plan, remaining, self._estimates())
