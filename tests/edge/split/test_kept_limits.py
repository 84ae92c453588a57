"""What of earlier answers is kept: within a limit in bytes, and only what a later one can go on from."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from common.decoding.request import DecodingRequest
from edge.split.held import HeldSequences
from edge.split.kept_sessions import KeptSession, KeptSessions
from tests.support.split.fake_split_cloud import FakeSplitCloud
from tests.support.split.reusing_answers import LENGTH, answered, prompt_of
from tests.support.split.split_answers import BABBLE, NEVER, QUESTIONS, engine_of


async def test_kept_kv_has_a_limit_in_bytes(demo_split: Path, cloud: FakeSplitCloud) -> None:
    async with engine_of(demo_split, cloud, "edge.kv_cache.ram_bytes=0") as engine:
        turn = (await answered(engine, prompt_of(engine, QUESTIONS[0]))).answer.committed
        assert (await answered(engine, turn, (NEVER, NEVER))).answer.report.cached_tokens == 0
        assert cloud.sessions and all(session.closed for session in cloud.sessions)
    held = HeldSequences(3, 1, 64, 4)
    for sequence in range(3):
        held.begin(sequence, [], "a")
        held[sequence].tokens, held[sequence].held = list(range(20)), [20]
        assert held.end(sequence, True, 50) == ([0] if sequence == 2 else [])
    assert [len(held[sequence].computed) for sequence in range(3)] == [0, 20, 20]
    assert held.end(2, False, 50) == [2]


async def test_kv_and_the_states_of_sessions_share_the_limit(demo_split: Path, cloud: FakeSplitCloud) -> None:
    """Also of answers at once, and of turns, which take what they go on from."""
    limit = 1 << 19
    async with engine_of(demo_split, cloud, f"edge.kv_cache.ram_bytes={limit}") as engine:
        found, held = 0, engine.segments._held
        for at in range(4):
            prompts = [prompt_of(engine, question) for question in QUESTIONS[at:]]
            splits = await asyncio.gather(*(answered(engine, prompt, (NEVER, NEVER), BABBLE) for prompt in prompts))
            turn = [*splits[0].answer.committed, *prompt_of(engine, "And?")]
            found += (await answered(engine, turn, (NEVER, NEVER))).answer.report.cached_tokens
            kv = sum(held[sequence].held[0] for sequence in held._idle) * engine.segments._position_bytes
            assert 0 < kv < limit < kv + engine._kept.bytes + engine.segments._position_bytes * 40
            assert kv + engine._kept.bytes <= limit
    assert found


async def test_an_answer_left_before_it_has_read_as_far_as_its_session_closes_it(
    demo_split: Path, cloud: FakeSplitCloud
) -> None:
    """Two other answers have taken both sequences, so that the edge has to read the prompt again; the cloud has not."""
    async with engine_of(demo_split, cloud, "edge.model.sequences=2") as engine:
        turn = (await answered(engine, prompt_of(engine, QUESTIONS[0]), (NEVER, NEVER), BABBLE)).answer.committed
        for question in QUESTIONS[1:3]:
            await answered(engine, prompt_of(engine, question), (NEVER, NEVER), reuse=False)
        request = DecodingRequest(turn, LENGTH, BABBLE, engine.plan())
        async with engine.answer(request, True) as left:
            running = asyncio.create_task(anext(left.run()))
            await asyncio.sleep(0)
            running.cancel()
            await asyncio.wait([running])
        assert left.answer.report.owed == 0
        assert cloud.sessions[-1].begun_with == len(turn) - 1
        assert all(session.closed for session in cloud.sessions)
        await answered(engine, prompt_of(engine, "Another?"), (NEVER, NEVER))
    assert cloud.sessions[-1].begun_with == 0


async def test_a_session_that_shares_nothing_with_a_prompt_is_not_taken(cloud: FakeSplitCloud) -> None:
    (one,) = cloud.clouds()._clouds
    kept, session = KeptSessions(2, 1000), cloud.session("f")
    session.send(np.zeros((10, 4), np.float32))
    kept.give(KeptSession(one, session, [], ""))  # type: ignore[arg-type]
    assert kept.take([1, 2, 3], "") is None
    assert len(kept) == 1


async def test_so_many_sessions_are_kept_and_the_least_recently_used_is_closed(cloud: FakeSplitCloud) -> None:
    (one,) = cloud.clouds()._clouds
    kept = KeptSessions(2, 1000)
    for at in range(3):
        session = cloud.session("f")
        session.send(np.zeros((10, 4), np.float32))
        kept.give(KeptSession(one, session, list(range(at, at + 10)), ""))  # type: ignore[arg-type]
    assert [session.closed for session in cloud.sessions] == [True, False, False]
    assert kept.bytes == 2 * 160
    assert kept.take([*range(10), 7], "") is None
    found = kept.take([*range(2, 9), 50, 51], "")
    assert found is not None and (found.tokens, found.session.positions, len(kept)) == (list(range(2, 9)), 7, 1)
    kept.close()
    assert cloud.sessions[1].closed


@pytest.mark.parametrize(
    ("most_bytes", "closed"), [(320, [True, False, False]), (319, [True, True, False]), (0, [True] * 3)]
)
async def test_the_states_of_kept_sessions_have_a_limit_in_bytes(
    cloud: FakeSplitCloud, most_bytes: int, closed: list[bool]
) -> None:
    (one,) = cloud.clouds()._clouds
    kept = KeptSessions(9, most_bytes)
    for _ in range(3):
        session = cloud.session("f")
        session.send(np.zeros((10, 4), np.float32))
        kept.give(KeptSession(one, session, list(range(10)), ""))  # type: ignore[arg-type]
    assert [session.closed for session in cloud.sessions] == closed
    assert kept.bytes <= most_bytes
