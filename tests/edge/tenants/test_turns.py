"""Whose turn it is where requests wait for the edge's sequences: fair shares by weight, batches last."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from common.config_edge import LimitsConfig
from common.errors import OverloadedError
from common.fair_queue import FairQueue, may_wait
from common.http.request_context import current_priority, current_tenant
from edge.engine.sequence_pool import SequencePool

NEVER_FULL = LimitsConfig(max_queue=1000)


class OneSequence:
    """A fake engine of one sequence, which each request holds for one turn.

    `served` has the tenants in the order of their turns.
    """

    def __init__(self, limits: LimitsConfig = NEVER_FULL, **weights: float) -> None:
        self.pool = SequencePool(1, limits, weight=lambda tenant: weights.get(tenant, 1.0))
        self.served: list[str] = []
        self._busy = AsyncExitStack()
        self._requests: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "OneSequence":
        """Its sequence is taken until `serve`."""
        await self._busy.enter_async_context(self.pool.lend(1, lambda _: 0))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.serve()

    async def ask(self, tenant: str, times: int = 1, priority: int = 0, name: str = "") -> list[asyncio.Task[None]]:
        """So many requests, which wait."""
        tasks = [asyncio.create_task(self._turn(tenant, priority, name or tenant)) for _ in range(times)]
        self._requests += tasks
        await asyncio.sleep(0)
        return tasks

    async def serve(self) -> str:
        """The turns of all that wait."""
        await self._busy.aclose()
        await asyncio.gather(*self._requests, return_exceptions=True)
        return "".join(self.served)

    async def _turn(self, tenant: str, priority: int, name: str) -> None:
        current_tenant.set(tenant)
        current_priority.set(priority)
        async with self.pool.lend(1, lambda _: 0):
            self.served.append(name)
            await asyncio.sleep(0)


async def test_with_ten_of_one_tenant_waiting_the_one_of_another_is_next() -> None:
    async with OneSequence() as engine:
        await engine.ask("a", 10)
        await engine.ask("b")
        assert (await engine.serve())[:3] in ("aba", "baa"), "a, who was first, has at most one turn before"


async def test_who_has_had_turns_alone_is_behind_who_has_had_none() -> None:
    async with OneSequence() as engine:
        await engine.ask("a", 3)
    async with engine:
        await engine.ask("a", 10)
        await engine.ask("b")
        assert (await engine.serve())[3:5] == "ba"


@pytest.mark.parametrize(("weights", "shares"), [((1, 1), (15, 15)), ((2, 1), (20, 10)), ((0.5, 4.5), (3, 27))])
async def test_turns_are_shared_by_weight_as_long_as_both_wait(weights: Sequence[float], shares: Sequence[int]) -> None:
    async with OneSequence(a=weights[0], b=weights[1]) as engine:
        await engine.ask("a", 40)
        await engine.ask("b", 40)
        served = (await engine.serve())[:30]
        assert [served.count("a"), served.count("b")] == [pytest.approx(share, abs=1) for share in shares]


async def test_idle_time_saves_up_no_turns() -> None:
    async with OneSequence() as engine:
        await engine.ask("a", 20)
    async with engine:
        await engine.ask("a", 10)
        await engine.ask("b", 10)
        served = (await engine.serve())[20:30]
        assert served.count("b") in (5, 6), "b has not waited so far: it gets no turns for that time"


async def test_batches_wait_until_nothing_else_does_and_are_shared_fairly_themselves() -> None:
    async with OneSequence() as engine:
        await engine.ask("a", 4, priority=1, name="A")
        await engine.ask("b", 2, priority=7, name="B")
        await engine.ask("a", 2)
        await engine.ask("b", 1)
        assert sorted((served := await engine.serve())[:3]) == ["a", "a", "b"]
        assert sorted(served[3:7]) == ["A", "A", "B", "B"]


async def test_a_priority_overtakes_the_tenants_own_requests_and_nobody_elses() -> None:
    async with OneSequence() as engine:
        await engine.ask("a", 3)
        await engine.ask("a", name="!", priority=-1000)
        await engine.ask("b", 3)
        served = await engine.serve()
        assert served[0] == "!"
        assert served[1:6] == "babab", "a's urgent request was one of its turns"


async def test_who_leaves_while_waiting_takes_no_turn_along() -> None:
    async with OneSequence() as engine:
        first, _ = await engine.ask("a", 2)
        await engine.ask("b", 2)
        first.cancel()
        assert await engine.serve() in ("abb", "bab", "bba")
    async with engine:
        (last,) = await engine.ask("c")
        await engine._busy.aclose()  # c has its turn, and leaves before it can take it
        last.cancel()
        await asyncio.gather(last, return_exceptions=True)
    async with asyncio.timeout(20), engine:
        assert engine.pool.stats() | {"sequences_lent": 1, "waiting": 0} == engine.pool.stats()


async def test_a_queue_full_of_one_tenants_requests_has_room_for_anothers() -> None:
    async with OneSequence(LimitsConfig(max_queue=6)) as engine:
        a = await engine.ask("a", 10)
        b = await engine.ask("b", 10)
        refused = [[isinstance(t.exception(), OverloadedError) for t in of if t.done()] for of in (a, b)]
        assert [len(one) for one in refused] == [4, 8], "places for 7, of which the first holds the sequence"
        assert all(all(one) for one in refused)
        assert (await engine.serve()).count("b") == 2


async def test_a_queue_full_of_batches_refuses_only_batches() -> None:
    async with OneSequence(LimitsConfig(max_queue=3)) as engine:
        (*_, refused) = await engine.ask("a", 4, priority=1, name="A")
        await engine.ask("a", 2)
        assert isinstance(refused.exception(), OverloadedError)
        assert await engine.serve() == "aaAAA"


def test_a_tenant_alone_may_have_all_places_and_no_more() -> None:
    equal = {"a": 1.0, "b": 1.0, "c": 2.0}.__getitem__
    assert may_wait(3, 8, {"a": 5}, "a", equal) and not may_wait(4, 8, {"a": 5}, "a", equal)
    assert may_wait(4, 8, {"a": 8}, "b", equal) and not may_wait(5, 8, {"a": 8}, "b", equal)
    assert may_wait(4, 8, {"a": 8, "b": 0, "c": 0}, "c", {"a": 1.0, "c": 1.0}.__getitem__), "who has none is not asked"
    assert not may_wait(1, 8, {"a": 4, "b": 4}, "a", equal)


@pytest.mark.parametrize(
    ("taken", "weights"),
    [({"a": 8}, {"a": 1.0, "b": 0.01}), (dict.fromkeys("cdefghijkl", 1), {}), ({"a": 8}, {"a": 99.0})],
)
def test_whose_share_is_below_one_place_has_one_and_no_more(taken: dict[str, int], weights: dict[str, float]) -> None:
    def weight(tenant: str) -> float:
        return weights.get(tenant, 1.0)

    assert may_wait(1, 8, taken, "b", weight) and not may_wait(2, 8, taken, "b", weight)
    assert not may_wait(1, 8, taken | {"b": 1}, "b", weight)


def test_a_long_queue_is_fair_for_any_order_of_arrivals() -> None:
    queue: FairQueue[str] = FairQueue({"a": 1.0, "b": 2.0, "c": 3.0}.__getitem__)
    for tenant in ("aaaaaa" + "bbbbbb" + "cccccc") * 20:
        queue.add(tenant, tenant, 0)
    served = "".join(queue.pop() for _ in range(180))
    assert [served.count(tenant) for tenant in "abc"] == [pytest.approx(share, abs=1) for share in (30, 60, 90)]
    assert len(queue) == 360 - 180


async def test_who_waits_until_a_sequence_is_idle_lets_all_others_go_first() -> None:
    pool = SequencePool(1, NEVER_FULL)
    await pool.until_idle()
    first, second = AsyncExitStack(), AsyncExitStack()
    await first.enter_async_context(pool.lend(1, lambda _: 0))
    idle = asyncio.create_task(pool.until_idle())
    next_one = asyncio.create_task(second.enter_async_context(pool.lend(1, lambda _: 0)))
    await asyncio.sleep(0)
    await first.aclose()
    await next_one
    await asyncio.sleep(0)
    assert not idle.done()
    await second.aclose()
    async with asyncio.timeout(30):
        await idle
