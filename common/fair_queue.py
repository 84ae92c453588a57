"""Who of those that wait has the next turn, and who may wait: fair shares of each tenant, by weight."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

from common.http.request_context import current_priority, current_tenant

T = TypeVar("T")

WeightOf = Callable[[str], float]
"""From a tenant's name to its weight."""
Turn = Callable[[], AbstractAsyncContextManager[object]]
"""Entered around what is computed for one request."""


def equal_weights(_: str) -> float:
    return 1.0


def may_wait(requests: int, places: int, taken: Mapping[str, int], tenant: str, weight: WeightOf) -> bool:
    """Whether a `tenant` may have `requests` more of the `places`, of which each tenant has `taken` some.

    Where too few are free it may still have its share of all places, among those who have any, and one at least: else
    who comes first with many requests keeps all others out. So n tenants have up to 1 + 1/2 + ... + 1/n times the
    places, where each comes when those before it have all that they may.
    """
    if sum(taken.values()) + requests <= places:
        return True
    weights = {name: weight(name) for name, number in taken.items() if number} | {tenant: weight(tenant)}
    return taken.get(tenant, 0) + requests <= max(1.0, places * weights[tenant] / sum(weights.values()))


@dataclass(frozen=True, eq=False)
class Waiter(Generic[T]):
    """`item`: whoever waits. A priority above 0 is that of a batch."""

    item: T
    tenant: str
    priority: int
    arrival: int

    @property
    def batch(self) -> bool:
        return self.priority > 0


class FairQueue(Generic[T]):
    """Start-time fair queueing (Goyal, Vin and Cheng 1996) over tenants, a turn each.

    Batches have a turn only where nothing else waits. Among the tenants the one whose turns, over its weight, are
    fewest is next; who was idle gets no turns for that time. Among a tenant's own requests the lowest priority is
    next, then the first to arrive.
    """

    def __init__(self, weight: WeightOf = equal_weights) -> None:
        self._weight = weight
        self._waiting: list[Waiter[T]] = []
        self._arrivals = 0
        self._time = {False: 0.0, True: 0.0}
        """When the last turn began, in turns over weights; batches have a time of their own."""
        self._next: defaultdict[bool, dict[str, float]] = defaultdict(dict)
        """When each tenant's next turn begins, by `batch`."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def people(self) -> int:
        """Those that are no batches."""
        return sum(not waiter.batch for waiter in self._waiting)

    def add(self, item: T, tenant: str, priority: int) -> None:
        self._arrivals += 1
        waiter = Waiter(item, tenant, priority, self._arrivals)
        if not any(other.tenant == tenant and other.batch == waiter.batch for other in self._waiting):
            begins = self._next[waiter.batch]
            begins[tenant] = max(begins.get(tenant, 0.0), self._time[waiter.batch])
        self._waiting.append(waiter)

    def remove(self, item: T) -> None:
        """Takes out who waits no more."""
        self._waiting = [waiter for waiter in self._waiting if waiter.item is not item]

    def pop(self) -> T:
        """Who is next; at least one waits."""
        first = min(self._waiting, key=lambda one: (one.batch, self._begins(one), one.arrival))
        own = [one for one in self._waiting if (one.tenant, one.batch) == (first.tenant, first.batch)]
        waiter = min(own, key=lambda one: (one.priority, one.arrival))
        self._waiting.remove(waiter)
        self._time[waiter.batch] = self._begins(waiter)
        self._next[waiter.batch][waiter.tenant] += 1 / self._weight(waiter.tenant)
        return waiter.item

    def _begins(self, waiter: Waiter[T]) -> float:
        return self._next[waiter.batch][waiter.tenant]


@dataclass(frozen=True, eq=False)
class _Turn:
    places: int
    given: asyncio.Future[None]


class Turns:
    """A number of places; `len` is how many requests wait. Used in one event loop.

    A request is that of `current_tenant`, with `current_priority`. `on_turn` is called at each turn with how many go on
    waiting that are no batches.
    """

    def __init__(
        self, places: int, weight: WeightOf = equal_weights, on_turn: Callable[[int], None] = lambda _: None
    ) -> None:
        self._on_turn = on_turn
        self._free = places
        """Places that are promised to nobody; below 0 while a turn has taken more than there were."""
        self._queue: FairQueue[_Turn] = FairQueue(weight)
        self._idle = asyncio.Event()
        """Set while a place is free, for which then nobody waits."""
        self._note_idle()

    def __len__(self) -> int:
        return len(self._queue)

    async def until_idle(self) -> None:
        """Returns as soon as a place is free, for which nobody waits; takes none."""
        while not self._idle.is_set():  # a place may be taken before who waits here goes on
            await self._idle.wait()

    @property
    def people(self) -> int:
        """Requests that wait and are no batches."""
        return self._queue.people

    async def take(self, places: int = 1) -> None:
        """Returns when the request has its turn, for as soon as one place is free; `free` ends it."""
        turn = _Turn(places, asyncio.get_running_loop().create_future())
        self._queue.add(turn, current_tenant.get(), current_priority.get())
        self._give_turns()
        try:
            await turn.given
        except asyncio.CancelledError:
            if turn.given.done() and not turn.given.cancelled():
                self.free(places)  # it came too late
            else:
                self._queue.remove(turn)
            raise

    def free(self, places: int = 1) -> None:
        self._free += places
        self._give_turns()

    def _give_turns(self) -> None:
        """Promises what is promised to nobody to those who are next."""
        while self._free > 0 and self._queue:
            turn = self._queue.pop()
            self._on_turn(self._queue.people)
            if not turn.given.done():  # else its request has just left
                self._free -= turn.places
                turn.given.set_result(None)
        self._note_idle()

    def _note_idle(self) -> None:
        if self._free > 0:
            self._idle.set()
        else:
            self._idle.clear()
