"""The pool of a tail's live requests: right tokens whatever is evicted, bounded, nothing computed twice."""

import asyncio
import random

import pytest

from cloud.split.context_manager import CloudContextManager, Limits
from cloud.split.pool import TailPool
from common.errors import ContextLengthError, EngineError, StatesMissing
from common.protocol.hidden_states import pack
from common.types import GREEDY, Sampling, StateEncoding
from tests.support.split.fake_tail import FakeTail, as_engine, right_for, some_states
from tests.waiting import until

NO_LIMITS = Limits()


class UploadingEdge:
    """Uploads a session's states, requests tokens, and uploads again what the cloud has lost."""

    def __init__(self, pool: TailPool, contexts: CloudContextManager, number: int) -> None:
        self.name, self.again = f"s{number}", 0
        self._pool, self._contexts, self._number = pool, contexts, number

    def send(self, stop: int, start: int = 0) -> None:
        self._contexts.open(self.name)
        start = max(start, self._contexts.held(self.name))
        if start < stop:
            self._contexts.receive(self.name, start, pack(some_states(self._number, start, stop), StateEncoding.FP32))

    async def ask(self, position: int, sampling: Sampling = GREEDY) -> int:
        for _ in range(50):
            self.send(position)
            try:
                return (await self._pool.token(self.name, position, sampling)).token_id
            except StatesMissing:
                self.again += 1
        raise AssertionError("never answered")

    async def go(self, first: int, last: int) -> None:
        for position in range(first, last):
            assert await self.ask(position) == right_for(self._number, position)


def pool_of(tail: FakeTail, limits: Limits = NO_LIMITS) -> tuple[TailPool, CloudContextManager]:
    contexts = CloudContextManager(limits)
    return TailPool(as_engine(tail), contexts), contexts


async def test_nothing_is_computed_twice_and_nothing_is_kept_that_kv_holds() -> None:
    tail = FakeTail()
    pool, contexts = pool_of(tail)
    edge = UploadingEdge(pool, contexts, 1)
    await edge.go(5, 15)
    assert (tail.rows, tail.steps, edge.again, contexts.bytes) == (14, 10, 0, 0)
    assert (pool.computed, pool.cached, pool.drawn) == (14, sum(range(5, 14)), 10)
    await pool.close()
    assert not tail.lengths


async def test_a_repeated_request_gets_the_same_answer_without_computing() -> None:
    tail = FakeTail()
    pool, contexts = pool_of(tail)
    edge = UploadingEdge(pool, contexts, 1)
    assert await edge.ask(5) == await edge.ask(5) == right_for(1, 5)
    assert tail.steps == 1
    assert await edge.ask(5, Sampling(temperature=1.0)) == right_for(1, 5)
    assert (tail.steps, tail.rows, edge.again) == (2, 10, 1)
    await pool.close()


async def test_more_sessions_than_places_or_blocks_are_all_answered() -> None:
    tail = FakeTail(places=3, blocks=13, seconds=0.001)
    pool, contexts = pool_of(tail)
    edges = [UploadingEdge(pool, contexts, number) for number in range(8)]
    await asyncio.gather(*(edge.go(1 + number, 14 + number) for number, edge in enumerate(edges)))
    assert not tail.overrun and tail.max_running > 1
    assert sum(edge.again for edge in edges) > 0
    await pool.close()
    assert not tail.lengths and not pool._blocks


async def test_without_the_bound_the_engine_would_be_overrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TailPool, "_fits", lambda *_: True)
    tail = FakeTail(places=3, blocks=13, seconds=0.001)
    pool, contexts = pool_of(tail)
    await asyncio.gather(*(UploadingEdge(pool, contexts, number).go(1, 14) for number in range(8)))
    assert tail.overrun
    await pool.close()


async def test_two_sessions_that_need_each_others_blocks_both_finish() -> None:
    """Each needs one more block while the other holds the rest."""
    tail = FakeTail(places=2, blocks=1 + 5)
    pool, contexts = pool_of(tail)
    one, other = UploadingEdge(pool, contexts, 1), UploadingEdge(pool, contexts, 2)
    await one.ask(7)
    await other.ask(7)
    async with asyncio.timeout(30):
        answers = await asyncio.gather(one.ask(12), other.ask(12))
    assert answers == [right_for(1, 12), right_for(2, 12)] and not tail.overrun
    await pool.close()


async def test_requests_of_one_session_keep_their_order() -> None:
    tail = FakeTail(seconds=0.001)
    pool, contexts = pool_of(tail)
    edge = UploadingEdge(pool, contexts, 1)
    edge.send(20)
    answers = await asyncio.gather(*(pool.token("s1", position, GREEDY) for position in (5, 6, 9, 20)))
    assert [answer.token_id for answer in answers] == [right_for(1, position) for position in (5, 6, 9, 20)]
    assert tail.max_running == 1 and tail.rows == 20
    await pool.close()


async def test_a_cancelled_request_frees_its_kv_at_once_and_the_next_starts_over() -> None:
    tail = FakeTail(seconds=0.0)
    pool, contexts = pool_of(tail)
    edge = UploadingEdge(pool, contexts, 1)
    await edge.ask(5)
    tail.seconds = 30
    edge.send(6)
    asked = asyncio.create_task(pool.token("s1", 6, GREEDY))
    await until(lambda: tail.running == 1)
    asked.cancel()
    await asyncio.wait([asked])
    await until(lambda: tail.running == 0 and not tail.lengths and contexts.held("s1") == 0)
    tail.seconds = 0
    assert await edge.ask(6) == right_for(1, 6) and edge.again == 0
    await pool.close()


async def test_a_session_closed_and_opened_again_during_a_request_is_a_new_one() -> None:
    tail = FakeTail(seconds=0.02)
    pool, contexts = pool_of(tail)
    edge = UploadingEdge(pool, contexts, 1)
    edge.send(5)
    old = asyncio.create_task(pool.token("s1", 5, GREEDY))
    await until(lambda: tail.running == 1)
    contexts.close("s1")
    contexts.open("s1")
    contexts.receive("s1", 0, pack(some_states(2, 0, 5), StateEncoding.FP32))
    new = asyncio.create_task(pool.token("s1", 5, GREEDY))
    assert (await old).token_id == right_for(1, 5)
    assert (await new).token_id == right_for(2, 5)
    await pool.close()
    assert not tail.lengths


async def test_a_lost_engine_loses_all_kv_and_no_session() -> None:
    tail = FakeTail()
    pool, contexts = pool_of(tail)
    edges = [UploadingEdge(pool, contexts, number) for number in range(3)]
    for edge in edges:
        await edge.ask(5)
    tail.dead = True
    edges[0].send(6)
    with pytest.raises(EngineError):
        await pool.token("s0", 6, GREEDY)
    pool.drop_all()
    assert len(pool) == 0
    tail.dead = False
    await asyncio.gather(*(edge.go(6, 9) for edge in edges))
    assert [edge.again for edge in edges] == [0, 0, 0]  # these look at `held` first; a remote edge would get an error
    await pool.close()


async def test_a_request_that_can_never_fit_is_refused_and_evicts_nothing() -> None:
    tail = FakeTail(blocks=6)
    pool, contexts = pool_of(tail)
    small, large = UploadingEdge(pool, contexts, 1), UploadingEdge(pool, contexts, 2)
    await small.ask(5)
    for position in (30, 100):
        large.send(position)
        with pytest.raises(ContextLengthError):
            await pool.token("s2", position, GREEDY)
    assert len(pool) == 1 and contexts.held("s1") == 5
    await pool.close()


@pytest.mark.parametrize("seed", range(10))
async def test_random_traffic_is_answered_correctly_and_leaves_nothing(seed: int) -> None:
    rng = random.Random(seed)
    tail = FakeTail(places=rng.randrange(1, 5), blocks=rng.randrange(8, 20), seconds=0.001)
    pool, contexts = pool_of(tail, Limits(total_bytes=4000))

    async def one(number: int) -> None:
        edge, position = UploadingEdge(pool, contexts, number), rng.randrange(1, 10)
        while position < 24:
            asked = asyncio.create_task(edge.ask(position))
            if rng.random() < 0.2:
                await asyncio.sleep(rng.random() * 0.004)
                asked.cancel()
                await asyncio.wait([asked])
            else:
                assert await asked == right_for(number, position)
            if rng.random() < 0.1:
                contexts.close(edge.name)
            position += rng.randrange(1, 4)

    async with asyncio.timeout(30):
        await asyncio.gather(*(one(number) for number in range(6)))
    assert not tail.overrun
    await pool.close()
    assert not tail.lengths and not pool._blocks and not pool._ending
