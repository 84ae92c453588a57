"""Whose request the engine computes next, where more wait than it has places: fair shares of its time, by weight.

vLLM's own queue is first come, first served: who sends many requests at once would keep all others waiting.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from common.fair_queue import Turns, WeightOf, equal_weights
from common.http.request_context import current_tenant

T = TypeVar("T")

NEWEST = 0.05
"""The weight of the newest turn in the mean of a tenant's."""
LEAST = 1e-6
"""Seconds of a turn, at least; also of those before the first one has ended."""


class MeanSeconds:
    """How long the turns of each tenant take, as a moving mean; a new tenant's as long as all others'."""

    def __init__(self) -> None:
        self._all = LEAST
        self._own: dict[str, float] = {}

    def of(self, tenant: str) -> float:
        return self._own.get(tenant, self._all)

    def record(self, tenant: str, seconds: float) -> None:
        self._all = _moved(self._all, seconds) if self._own else seconds
        self._own[tenant] = _moved(self.of(tenant), seconds)


class EngineTurns:
    """Lends the engine's `places` (sequences in one step) by turns; `len` is how many requests wait.

    A turn counts as much as those of its tenant take on average, so that what is shared is the time of the places: long
    answers cost more than verifies of a single step. Used in one event loop.
    """

    def __init__(
        self, places: int, weight: WeightOf = equal_weights, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ended = 0
        """Turns, whose seconds the next two count."""
        self.waited_seconds = self.held_seconds = 0.0
        """Until they began, and from then on."""
        self._clock = clock
        self._places = places
        self._seconds = MeanSeconds()
        self._turns = Turns(places, lambda tenant: weight(tenant) / self._seconds.of(tenant))

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def people(self) -> int:
        """Requests that wait and are no batches."""
        return self._turns.people

    @asynccontextmanager
    async def turn(self, sequences: int = 1) -> AsyncIterator[None]:
        """Around what the engine computes for a request of `current_tenant`, with `current_priority`.

        It begins as soon as one place is free, and takes one for each of `sequences`, but not more than there are.
        """
        taken, asked = min(sequences, self._places), self._clock()
        await self._turns.take(taken)
        tenant, began = current_tenant.get(), self._clock()
        try:
            yield
        finally:
            held = self._clock() - began
            self.ended += 1
            self.waited_seconds += began - asked
            self.held_seconds += held
            self._seconds.record(tenant, max(LEAST, held) * taken)
            self._turns.free(taken)


async def read_ahead(events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The events, which are drawn as they come, however slowly a client reads them.

    Closing this closes `events`, in the task that draws them.
    """
    drawn: asyncio.Queue[T | None] = asyncio.Queue()

    async def draw() -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    drawn.put_nowait(event)
        finally:
            drawn.put_nowait(None)

    drawing = asyncio.create_task(draw())
    try:
        while (event := await drawn.get()) is not None:
            yield event
        await drawing
    finally:
        drawing.cancel()
        await asyncio.gather(drawing, return_exceptions=True)


def _moved(mean: float, newest: float) -> float:
    return mean + NEWEST * (newest - mean)
