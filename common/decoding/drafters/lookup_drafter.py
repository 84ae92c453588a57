"""Composes look-up and model into one drafter: what is found as long as that is sure, then the model."""

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import msgspec

from common.decoding.answer import Answer
from common.decoding.interfaces import Drafter
from common.errors import GrammarError
from common.lookup.lookup import Lookup
from common.types import NEVER, NO_DRAFT, Draft, Sampling, StopRule

SURE = 0.6
"""The chance from which a token is taken without asking the model, whose own are accepted 50 to 95 times of 100.

Drafting a token takes the model the time of 0.1 to 0.4 tokens of the answer, so the model must be surer by that much.
"""


class LookupDrafter:
    """Drafts for `answer`: what `lookup` finds as long as that is sure, then the model; or what it finds, if longer.

    The model reads what was looked up only when it drafts after it. A gated answer's drafts are the model's alone,
    because only its confidence can keep a token unverified; so are those of an answer that goes on without a cloud.
    """

    def __init__(self, model: Drafter, lookup: Lookup, answer: Answer) -> None:
        self._model = model
        self._lookup = lookup
        self._answer = answer

    async def draft(self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop: StopRule = NEVER) -> Draft:
        """See `common.decoding.interfaces.Drafter`."""
        plan = self._answer.plan
        found = await self._found(token_ids, limit, stop.below) if plan.lossless and plan.use_draft_verify else NO_DRAFT
        sure = found.part(0, next((n for n, chance in enumerate(found.confidences) if chance < SURE), limit))
        product = math.prod(sure.confidences)
        if sure.finished or len(sure.token_ids) == limit or product < stop.below:
            return sure
        try:
            rest = await self._model.draft(
                [*token_ids, *sure.token_ids],
                limit - len(sure.token_ids),
                sampling,
                stop=msgspec.structs.replace(stop, below=stop.below / product),
            )
        except GrammarError:
            if not sure.token_ids:
                raise
            # The text that was found breaks the answer's grammar; the cloud would reject it, too.
            return await self._model.draft(token_ids, limit, sampling, stop=stop)
        return likelier(sure.joined(rest) if sure.token_ids else rest, found)

    async def instead_of(self, draft: Draft, limit: int) -> Draft:
        """`draft`, which follows what is committed, or what is looked up there if more of that is likely accepted."""
        return likelier(draft, await self._found(self._answer.committed, limit, 0.0))

    @property
    def predicted(self) -> int:
        """Tokens of the answer so far that its prediction foresaw."""
        self._lookup.read(self._answer.committed)
        return self._lookup.predicted

    async def _found(self, token_ids: Sequence[int], limit: int, stop_below: float) -> Draft:
        """What follows `token_ids`: all that is committed, and a guess; after others nobody uses the draft."""
        committed = self._answer.committed
        await self._lookup.read_prompt(committed)
        self._lookup.read(committed)
        return self._lookup.propose(token_ids[len(committed) :], limit, stop_below)


def likelier(draft: Draft, other: Draft) -> Draft:
    """The one of which more tokens are expected to be accepted; of equal ones the first."""
    return other if expected_tokens(other) > expected_tokens(draft) else draft


def expected_tokens(draft: Draft) -> float:
    """How many tokens are accepted on average, if the confidences are their chances."""
    return math.fsum(accumulate(draft.confidences, mul))
