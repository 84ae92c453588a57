"""Drafts the next round while a verify is in flight, assuming that all of its draft is accepted."""

import asyncio
from collections.abc import Sequence
from typing import Self

from common.decoding.interfaces import Drafter
from common.tracing.spans import span
from common.types import NO_DRAFT, Draft, Sampling, StopRule


class DraftAhead:
    """Drafts for one answer; `start` begins a draft in the background that the next `draft` uses if it fits.

    It guesses one token, the bonus, and drafts after it. Use it with `async with`: leaving cancels what still runs.
    """

    def __init__(self, drafter: Drafter) -> None:
        self.wasted = 0
        """Tokens that the model drafted ahead and that are in no draft; those of a cancelled draft are not counted."""
        self._drafter = drafter
        self._base: list[int] = []
        """The tokens before the guess."""
        self._bonus: int | None = None
        self._task: asyncio.Task[Draft] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._cancel()

    def start(self, token_ids: Sequence[int], limit: int, sampling: Sampling, stop: StopRule) -> None:
        """Starts drafting after `token_ids`, which the verify in flight may contradict."""
        assert self._task is None
        self._base, self._bonus = list(token_ids), None
        self._task = asyncio.create_task(self._guess(limit, sampling, stop))

    async def draft(self, token_ids: Sequence[int], limit: int, sampling: Sampling, stop: StopRule) -> Draft:
        """Up to `limit` tokens after `token_ids`: those drafted ahead if the guess was right, else new ones."""
        with span("draft") as traced:
            guess = await self._ahead(token_ids)
            draft = guess or await self._drafter.draft(token_ids, limit, sampling, stop=stop)
            traced.set(limit=limit, tokens=len(draft.token_ids), ahead=guess is not None, reused=draft.reused)
            return draft

    async def _ahead(self, token_ids: Sequence[int]) -> Draft | None:
        """The draft that was made ahead, if its guess was right; else that ends, if it still runs."""
        if self._task is not None and self._may_follow(token_ids):
            guess = await self._task
            if guess.token_ids and self._may_follow(token_ids):
                self._task = None
                return guess
        await self._cancel()
        return None

    def _may_follow(self, token_ids: Sequence[int]) -> bool:
        """Whether `token_ids` are the base and the bonus token, if that is drawn already."""
        base = len(self._base)
        return (
            len(token_ids) == base + 1 and self._bonus in (None, token_ids[-1]) and list(token_ids[:base]) == self._base
        )

    async def _guess(self, limit: int, sampling: Sampling, stop: StopRule) -> Draft:
        with span("draft ahead") as traced:
            bonus = await self._drafter.draft(self._base, 1, sampling)
            self.wasted += bonus.drawn
            self._bonus = bonus.token_ids[0] if bonus.token_ids else None
            if self._bonus is None or bonus.finished:
                return NO_DRAFT
            draft = await self._drafter.draft([*self._base, self._bonus], limit, sampling, stop=stop)
            traced.set(limit=limit, tokens=len(draft.token_ids))
            return draft

    async def _cancel(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            (unused,) = await asyncio.gather(task, return_exceptions=True)
            self.wasted += unused.drawn if isinstance(unused, Draft) else 0
