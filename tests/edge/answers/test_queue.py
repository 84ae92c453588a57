"""The queue for the edge's sequences: a burst may fill it; while it does not empty, it is kept short."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from common.config_edge import LimitsConfig
from common.errors import OverloadedError
from edge.engine.sequence_pool import STANDING_TURNS, SequencePool
from tests.support.manual_clock import ManualClock

MAX_QUEUE = 6


class Customers:
    """Requests that hold the pool's one sequence, or wait for it, until they are served one after the other."""

    def __init__(self, pool: SequencePool) -> None:
        self.pool = pool
        self.refused = 0
        self._waiting: list[asyncio.Task[AsyncExitStack]] = []

    async def come(self, number: int) -> None:
        for _ in range(number):
            task = asyncio.create_task(self._enter())
            await asyncio.sleep(0)
            if task.done() and task.exception():
                self.refused += 1
            else:
                self._waiting.append(task)

    async def serve(self, number: int) -> None:
        for _ in range(number):
            await (await self._waiting.pop(0)).aclose()
            await asyncio.sleep(0)

    async def _enter(self) -> AsyncExitStack:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.pool.lend(1, lambda _: 0))
            return stack.pop_all()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def waiting(self) -> int:
        return self.pool.stats()["waiting"]


async def test_a_burst_fills_the_queue_and_a_standing_queue_is_short_until_it_has_emptied() -> None:
    customers = Customers(SequencePool(1, LimitsConfig(max_queue=MAX_QUEUE)))
    await customers.come(1 + MAX_QUEUE + 3)
    assert (customers.waiting, customers.refused) == (MAX_QUEUE, 3)
    await customers.serve(MAX_QUEUE - 1)
    await customers.come(4)
    assert (customers.waiting, customers.refused) == (1, 7)
    await customers.serve(2)
    await customers.come(1 + MAX_QUEUE)
    assert (customers.waiting, customers.refused) == (MAX_QUEUE, 7)
    await customers.serve(MAX_QUEUE + 1)


async def test_under_overload_only_those_of_the_first_burst_wait_longer_than_for_a_few_answers() -> None:
    """Whoever is admitted waits behind those who wait already; each burst is followed by refusals until it is over."""
    pool = SequencePool(4, LimitsConfig(max_queue=16))
    customers, waits = Customers(pool), []
    for _ in range(300):
        before = customers.waiting
        await customers.come(10)
        waits += range(before, customers.waiting)
        await customers.serve(1)
    late = [turns for turns in waits if turns >= STANDING_TURNS * 4]
    assert len(late) < 16 < len(waits) / 10
    assert max(waits[20:]) < STANDING_TURNS * 4
    await customers.serve(len(customers))


async def test_clients_that_ask_again_as_soon_as_they_have_their_answer_are_not_refused() -> None:
    """Twice as many as there are sequences: a queue that stands because of them keeps room for them."""
    customers = Customers(SequencePool(4, LimitsConfig(max_queue=16)))
    await customers.come(8)
    for _ in range(100):
        await customers.serve(1)
        await customers.come(1)
    assert customers.refused == 0
    await customers.serve(8)


async def test_no_refusal_is_late_and_nobody_who_was_refused_waits() -> None:
    customers = Customers(SequencePool(1, LimitsConfig(max_queue=0)))
    await customers.come(5)
    assert (customers.waiting, customers.refused) == (0, 4)
    with pytest.raises(OverloadedError):
        await customers.pool.lend(1, lambda _: 0).__aenter__()
    await customers.serve(1)


async def test_a_refusal_says_when_a_place_will_be_free_at_the_rate_of_the_last_answers() -> None:
    clock = ManualClock(1000.0)
    pool = SequencePool(1, LimitsConfig(max_queue=1), clock=clock)
    customers = Customers(pool)
    await customers.come(2)
    for _ in range(5):
        clock.now += 7
        await customers.serve(1)
        await customers.come(1)
    assert (refusal(pool, 1), customers.refused) == (7, 0)
    await customers.serve(2)


async def test_a_refusal_says_when_enough_tokens_will_have_ended() -> None:
    clock = ManualClock(1000.0)
    pool = SequencePool(2, LimitsConfig(max_tokens_total=100), clock=clock)
    for _ in range(5):
        async with pool.lend(60, lambda _: 0):
            clock.now += 7
    async with pool.lend(60, lambda _: 0):
        assert refusal(pool, 50) == 2, "ten of sixty tokens"
        assert refusal(pool, 100) == 7


def refusal(pool: SequencePool, tokens: int) -> int:
    with pytest.raises(OverloadedError) as refused, pool.admit(1, tokens):
        pass
    return refused.value.retry_after
