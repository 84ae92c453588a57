"""Live requests on an engine with few places and blocks, and on one that dies: no request waits forever."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cloud.engine.engine import CloudEngine
from cloud.verify import resident_pool, stateless
from cloud.verify.resident_pool import CloseReason, ResidentPool
from cloud.verify.round import VerifyRound
from common.errors import EngineError
from tests.cloud.engine.test_engine import plain
from tests.cloud.verify.test_resident import in_rounds, one, pool_of, question_and_answer
from tests.conftest import CLOUD_CONTEXT, CLOUD_MODEL
from tests.support.engines import started

pytestmark = [pytest.mark.long, pytest.mark.asyncio(loop_scope="session")]

PLACES, BLOCKS, BLOCK = 8, 24, 32
LONG = [n + 5 for n in range(CLOUD_CONTEXT - 40)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def narrow_engine() -> AsyncIterator[CloudEngine]:
    """An engine with 8 places, and with KV blocks for 3 requests of the maximum length."""
    args = {"dtype": "float32", "max_model_len": CLOUD_CONTEXT, "max_num_seqs": PLACES, "block_size": BLOCK}
    engine = CloudEngine(str(CLOUD_MODEL), args={**args, "num_gpu_blocks_override": BLOCKS})
    async with started(engine):
        assert (engine.max_num_seqs, engine.kv_blocks, engine.block_size) == (PLACES, BLOCKS, BLOCK)
        yield engine


async def fill(pool: ResidentPool, length: int) -> int:
    """Starts live requests on prompts of `length` until one is refused; returns how many there are."""
    for n in range(PLACES):
        if await pool.verify(f"{n}", VerifyRound([5 + n] * length, [7, 7])) is None:
            return n
    return PLACES


async def waits_forever(engine: CloudEngine, prompt: list[int]) -> bool:
    try:
        async with asyncio.timeout(20):
            await stateless.verify(engine, VerifyRound(prompt, [], max_tokens=2))
    except TimeoutError:
        return True
    return False


def unbounded(blocks: int, longest: int) -> int:
    return 100 * blocks


@pytest.mark.parametrize("bounded", [True, False])
async def test_waiting_live_requests_leave_places_for_others(
    narrow_engine: CloudEngine, monkeypatch: pytest.MonkeyPatch, bounded: bool
) -> None:
    if not bounded:
        monkeypatch.setattr(resident_pool, "block_budget", unbounded)
    limit = PLACES // 2 if bounded else PLACES
    async with pool_of(narrow_engine, limit) as pool:
        assert await fill(pool, 5) == limit
        assert await waits_forever(narrow_engine, [5, 6]) is not bounded
        await pool.close()


@pytest.mark.parametrize("bounded", [True, False])
async def test_waiting_live_requests_leave_blocks_for_others(
    narrow_engine: CloudEngine, monkeypatch: pytest.MonkeyPatch, bounded: bool
) -> None:
    if not bounded:
        monkeypatch.setattr(resident_pool, "block_budget", unbounded)
    async with pool_of(narrow_engine, 5) as pool:
        assert await fill(pool, 90) == (3 if bounded else 5)  # of four blocks each
        assert await waits_forever(narrow_engine, LONG) is not bounded
        await pool.close()


async def test_the_engine_holds_no_more_blocks_than_counted(narrow_engine: CloudEngine) -> None:
    committed = [5]
    async with pool_of(narrow_engine, PLACES) as pool:
        while len(committed) + 17 < CLOUD_CONTEXT:
            await one(pool, "s", committed, [7] * (len(committed) % 17))
            held = narrow_engine.stats()["kv_cache_usage"] * (BLOCKS - 1)
            assert 0 < held <= pool._blocks(len(committed)) + 0.01
            committed = [*committed, 9, 9, 9]
        assert pool.continued > pool.opened


async def test_many_sessions_in_little_kv_all_get_right_answers(narrow_engine: CloudEngine) -> None:
    prompt, _ = await question_and_answer(narrow_engine)
    asked = [[5 + n, *prompt] for n in range(24)]
    answers = await asyncio.gather(*(plain(narrow_engine, prompt) for prompt in asked))
    async with pool_of(narrow_engine, PLACES - 1) as pool, asyncio.timeout(200):
        jobs = [
            in_rounds(narrow_engine, pool, f"{n}", prompt, answer)
            for n, (prompt, answer) in enumerate(zip(asked, answers, strict=True))
        ]
        beside = [stateless.verify(narrow_engine, VerifyRound(LONG, [], max_tokens=30)) for _ in range(6)]
        drawn = await asyncio.gather(*jobs, *beside)
        assert list(drawn[: len(jobs)]) == list(answers)
        assert pool.continued > 0


@pytest.mark.parametrize("fault", ["closed", "killed"])
async def test_a_restart_during_an_answer_changes_nothing(narrow_engine: CloudEngine, fault: str) -> None:
    prompt, right = await question_and_answer(narrow_engine)
    async with pool_of(narrow_engine, 4) as pool:
        for session in ("a", "b", "c"):
            await one(pool, session, prompt, right[:4])
        job = asyncio.create_task(pool.verify("d", VerifyRound(prompt, [], max_tokens=150)))
        await asyncio.sleep(0.05)
        if fault == "killed":
            for process in narrow_engine._llm.engine_core.resources.engine_manager.processes:
                os.kill(process.pid, signal.SIGKILL)
            assert await job is None
            assert len(pool) == 0
            with pytest.raises(EngineError):
                await stateless.verify(narrow_engine, VerifyRound(prompt, right[:4]))
        await narrow_engine.close()
        assert await job is None
        await narrow_engine.start()
        for session in ("a", "b", "c"):  # their live requests ended with the engine, and start over
            assert await in_rounds(narrow_engine, pool, session, prompt + right[:5], right[5:]) == right[5:]
        assert pool.closed[CloseReason.ENGINE] == 4
        assert pool.opened == 7


async def test_a_restart_between_two_rounds_changes_nothing(narrow_engine: CloudEngine) -> None:
    prompt, right = await question_and_answer(narrow_engine)
    async with pool_of(narrow_engine, 4) as pool:
        for session in ("a", "b"):
            await one(pool, session, prompt, right[:4])
        await narrow_engine.close()
        await narrow_engine.start()
        for session in ("a", "b"):
            assert await in_rounds(narrow_engine, pool, session, prompt + right[:5], right[5:]) == right[5:]
        assert pool.closed[CloseReason.ENGINE] == 2
