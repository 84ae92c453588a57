"""Sessions that take over the first positions of earlier ones: right tokens, nothing stale, bounded, of one tenant."""

import asyncio
import random
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from cloud.split.context_manager import CloudContextManager, Limits
from cloud.split.engine import TailEngine
from cloud.split.pool import TailPool
from common.errors import ForeignSession, StatesMissing
from common.protocol.hidden_states import pack
from common.protocol.split_frames import AskFrame, TokenFrame
from common.types import GREEDY, StateEncoding
from tests.cloud.split.test_route import line_to, new_session, opening, states
from tests.support.split.fake_tail import (
    MANIFEST,
    FakeTail,
    as_engine,
    fake_cloud,
    right_for,
    some_states,
    token_after,
)
from tests.waiting import until


def pool_of(tail: FakeTail, limits: Limits | None = None) -> tuple[TailPool, CloudContextManager]:
    contexts = CloudContextManager(limits or Limits())
    return TailPool(as_engine(tail), contexts), contexts


async def asked(pool: TailPool, contexts: CloudContextManager, session: str, states: np.ndarray) -> int:
    """Sends what the cloud does not have of `states`, and asks for the token after them."""
    for _ in range(3):
        contexts.open(session)
        held = contexts.held(session)
        if held < len(states):
            contexts.receive(session, held, pack(states[held:], StateEncoding.FP32))
        try:
            return (await pool.token(session, len(states), GREEDY)).token_id
        except StatesMissing:
            continue
    raise AssertionError("never answered")


@pytest.mark.parametrize("keep", [1, 7, 11, 12, 15, 20])
async def test_a_session_goes_on_from_the_first_positions_of_another_and_computes_only_the_rest(keep: int) -> None:
    """12 positions are in KV, 3 more only uploaded; of the kept ones none is sent again."""
    tail = FakeTail(blocks=40)
    pool, contexts = pool_of(tail)
    old = some_states(1, 0, 15)
    await asked(pool, contexts, "old", old[:12])
    contexts.receive("old", 12, pack(old[12:], StateEncoding.FP32))
    pool.resume("new", "old", keep)
    assert contexts.held("new") == min(keep, 15) and contexts.held("old") == 0
    states = np.concatenate([old[:keep], some_states(2, 0, 6)])
    rows = tail.rows
    assert await asked(pool, contexts, "new", states) == token_after(states)
    assert tail.rows - rows == len(states) - min(keep, 12)
    assert contexts.bytes == 0
    await pool.close()
    assert not tail.lengths and not pool._blocks


async def test_a_tail_that_cannot_go_back_starts_over_unless_all_of_it_is_kept() -> None:
    tail = FakeTail(blocks=40)
    tail.rewinds = False
    pool, contexts = pool_of(tail)
    states = some_states(1, 0, 12)
    await asked(pool, contexts, "old", states)
    pool.resume("whole", "old", 12)
    assert contexts.held("whole") == 12
    pool.resume("part", "whole", 11)
    assert contexts.held("part") == 0
    assert await asked(pool, contexts, "part", states[:11]) == token_after(states[:11])
    await pool.close()


@pytest.mark.parametrize(("window", "rewinds"), [(None, True), (256, True), (255, False)])
def test_a_tail_goes_back_only_where_vllm_keeps_the_kv_of_all_positions(window: int | None, rewinds: bool) -> None:
    engine = TailEngine.__new__(TailEngine)
    config = SimpleNamespace(max_model_len=256, get_sliding_window=lambda: window)
    engine._llm = cast(Any, SimpleNamespace(model_config=config))
    assert engine.rewinds == rewinds


async def test_what_cannot_be_taken_over_leaves_a_session_that_holds_nothing() -> None:
    pool, contexts = pool_of(FakeTail())
    pool.resume("new", "nobody", 5)
    contexts.open("new")
    assert contexts.held("new") == 0
    await asked(pool, contexts, "other", some_states(1, 0, 5))
    pool.resume("new", "other", 5)  # opened again on another connection: it is not begun again
    assert (contexts.held("new"), contexts.held("other")) == (0, 5)
    await pool.close()


async def test_no_tenant_takes_over_anothers_session() -> None:
    pool, contexts = pool_of(FakeTail())
    contexts.open("one", "a")
    contexts.receive("one", 0, pack(some_states(1, 0, 5), StateEncoding.FP32))
    with pytest.raises(ForeignSession):
        pool.resume("new", "one", 5, "b")
    contexts.open("two", "b")
    with pytest.raises(ForeignSession):
        pool.resume("two", "one", 5, "a")
    assert contexts.held("one") == 5


@pytest.mark.parametrize("running", [True, False])
async def test_nor_ends_its_live_request_which_could_not_be_taken_over(running: bool) -> None:
    """Neither one whose question is open, nor one that a tail would have to rewind which cannot."""
    tail = FakeTail()
    tail.rewinds = False
    if running:
        tail.gate.clear()
    pool, contexts = pool_of(tail)
    contexts.open("one", "a")
    contexts.receive("one", 0, pack(some_states(1, 0, 5), StateEncoding.FP32))
    asking = asyncio.create_task(pool.token("one", 5, GREEDY))
    await until(lambda: bool(tail.running if running else tail.steps))
    if not running:
        await asking
    with pytest.raises(ForeignSession):
        pool.resume("new", "one", 4, "b")
    tail.gate.set()
    assert (await asking).token_id == right_for(1, 5)
    assert (contexts.held("one"), len(pool)) == (5, 1)
    await pool.close()


@pytest.mark.parametrize("seed", range(6))
async def test_any_conversations_at_once_are_answered_correctly_within_the_bounds(seed: int) -> None:
    """Each goes on from a random place of what it has said, in a cloud that is too small for all of them."""
    rng = random.Random(seed)
    tail = FakeTail(places=rng.randrange(2, 5), blocks=rng.randrange(14, 30), seconds=0.001)
    tail.rewinds = bool(seed % 3)
    pool, contexts = pool_of(tail, Limits(total_bytes=4000))
    names = iter(range(1000))
    states = {number: some_states(number, 0, 3) for number in range(5)}
    sessions = {number: f"s{next(names)}" for number in states}
    for _ in range(60):
        number = rng.choice(list(states))
        if rng.random() < 0.5:
            keep = rng.randrange(1, len(states[number]) + 1)
            sessions[number], parent = f"s{next(names)}", sessions[number]
            pool.resume(sessions[number], parent, keep)
            states[number] = states[number][:keep]
        more = some_states(rng.randrange(100), 0, rng.randrange(1, 5))
        states[number] = np.concatenate([states[number], more])[-40:]
        if len(states[number]) == 40:
            states[number] = states[number][:20].copy()
            sessions[number] = f"s{next(names)}"
        assert await asked(pool, contexts, sessions[number], states[number]) == token_after(states[number])
    assert not tail.overrun
    await pool.close()
    assert not tail.lengths and not pool._blocks


@pytest.mark.parametrize("wrong", [{"parent": "x"}, {"parent": "0" * 31}, {"keep": -1}, {"keep": "5"}, {"parent": 5}])
async def test_a_wrong_parent_is_refused_and_the_connection_goes_on(wrong: dict[str, object]) -> None:
    async with fake_cloud() as cloud, line_to(cloud) as line:
        session = new_session()
        opened = {"type": "open", "session": session, "fingerprint": MANIFEST.fingerprint, "kind": "fp32"}
        await line.send(msgspec.msgpack.encode(opened | wrong))
        assert (await line.fault()).status == 400
        await line.send(opening(session), states(session, 1, 0, 5), AskFrame(session=session, id=0, position=5))
        reply = await line.receive()
        assert isinstance(reply, TokenFrame) and reply.token_id == right_for(1, 5)


async def test_a_session_that_names_itself_or_one_with_an_open_question_begins_with_nothing() -> None:
    async with fake_cloud() as cloud, line_to(cloud) as line:
        busy, session = new_session(), new_session()
        cloud.tail.gate.clear()
        await line.send(opening(busy), states(busy, 1, 0, 5), AskFrame(session=busy, id=0, position=5))
        await until(lambda: bool(cloud.tail.running))
        taking = msgspec.structs.replace(opening(session), parent=busy, keep=5)
        await line.send(taking, AskFrame(session=session, id=0, position=5))
        assert (await line.fault()).held == 0
        cloud.tail.gate.set()
        itself = msgspec.structs.replace(opening(session), parent=session, keep=3)
        await line.send(states(session, 2, 0, 5), itself, states(session, 2, 5, 6))
        await line.send(AskFrame(session=session, id=1, position=6))
        reply = await line.receive()
        assert isinstance(reply, TokenFrame) and reply.token_id == right_for(2, 6)
        assert cloud.contexts.held(busy) == 0
