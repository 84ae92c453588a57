"""The pool of live requests on the demo model is bounded, and ends requests as soon as nobody needs them."""

import asyncio
import functools

import pytest
from vllm.sampling_params import RequestOutputKind

from cloud.engine.engine import CloudEngine
from cloud.verify import live_request, resident_pool, stateless
from cloud.verify.resident_pool import CloseReason, block_budget, blocks_for
from cloud.verify.round import VerifyRound, vllm_params
from common.config_cloud import BatchConfig, CloudConfig, DraftVerifierConfig
from common.errors import ContextLengthError, RequestError
from common.types import GREEDY, Sampling
from tests.cloud.engine.test_engine import running_and_kv
from tests.cloud.verify.test_resident import HOT, chats, in_rounds, one, pool_of, question_and_answer
from tests.conftest import CLOUD_CONTEXT as CONTEXT

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_rounds_that_do_not_extend_the_last_one_start_over(cloud_engine: CloudEngine) -> None:
    prompt, right = await question_and_answer(cloud_engine)
    async with pool_of(cloud_engine) as pool:
        for committed in (prompt, prompt, prompt + right[:3], [*prompt[:-1], prompt[-1] ^ 1], prompt[:-1]):
            asked = VerifyRound(committed, right[:2])
            ours, theirs = await pool.verify("s", asked), await stateless.verify(cloud_engine, asked)
            assert ours and ours.token_ids == theirs.token_ids
        assert (pool.opened, pool.continued, len(pool)) == (4, 1, 1)
        assert pool.closed[CloseReason.MISMATCH] == 3


async def test_a_second_round_at_the_same_time_is_not_resident(cloud_engine: CloudEngine) -> None:
    prompt = chats(cloud_engine)[0]
    async with pool_of(cloud_engine) as pool:
        both = await asyncio.gather(*(pool.verify("s", VerifyRound(prompt, [7])) for _ in range(2)))
        assert [verdict is None for verdict in both] == [False, True]


async def test_an_answers_end_ends_its_live_request(cloud_engine: CloudEngine) -> None:
    prompt = chats(cloud_engine)[0]
    answer = (await stateless.verify(cloud_engine, VerifyRound(prompt, [], GREEDY, 200))).token_ids
    assert len(answer) < 200
    async with pool_of(cloud_engine) as pool:
        last = await one(pool, "stop", prompt + answer[:-3], [*answer[-3:], 7])
        assert (last.token_ids, last.finish_reason) == (answer[-3:], "stop")
        full = await one(pool, "length", [n + 5 for n in range(CONTEXT - 2)], [7])
        assert full.finish_reason or full.token_ids
        last = await one(pool, "length", [n + 5 for n in range(CONTEXT - 1)], [])
        assert last.finish_reason == "length"
        assert len(pool) == 0 and pool.closed[CloseReason.FINISHED] >= 2


async def test_a_wrong_round_is_refused_and_leaves_nothing(cloud_engine: CloudEngine) -> None:
    prompt = chats(cloud_engine)[0]
    async with pool_of(cloud_engine) as pool:
        for wrong, error in (
            (VerifyRound([5] * CONTEXT, []), ContextLengthError),
            (VerifyRound(prompt, [], Sampling(temperature=1000.0)), RequestError),
        ):
            for before in (False, True):
                if before:
                    await one(pool, "s", prompt[:-1], [])
                with pytest.raises(error):
                    await pool.verify("s", wrong)
        assert await one(pool, "s", prompt, [])


async def test_a_client_that_leaves_frees_its_live_request_at_once(
    cloud_engine: CloudEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only its client's leaving ends a round here.
    endless = functools.partial(vllm_params, kind=RequestOutputKind.DELTA, ignore_eos=True)
    monkeypatch.setattr(live_request, "_params", endless)
    prompt = chats(cloud_engine)[0]
    async with pool_of(cloud_engine) as pool, asyncio.timeout(60):
        for begun in (False, True):
            if begun:
                await one(pool, "s", prompt[:-1], [])
            job = asyncio.create_task(pool.verify("s", VerifyRound(prompt, [], HOT, 200)))
            while not cloud_engine._running.get_num_unfinished_requests():
                await asyncio.sleep(0.001)
            await running_and_kv(cloud_engine)
            assert not job.done()
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job
            assert (len(pool), await running_and_kv(cloud_engine)) == (0, (0, 0))
        assert pool.closed[CloseReason.LEFT] == 2


async def test_closing_during_a_round_lets_it_end(cloud_engine: CloudEngine) -> None:
    prompt, right = await question_and_answer(cloud_engine)
    async with pool_of(cloud_engine) as pool:
        job = asyncio.create_task(pool.verify("s", VerifyRound(prompt, right[:4])))
        await asyncio.sleep(0)
        await pool.close_session("s")
        verdict = await job
        assert verdict and verdict.token_ids == right[:5]
        assert len(pool) == 0


async def test_idle_live_requests_are_closed(cloud_engine: CloudEngine) -> None:
    prompt, right = await question_and_answer(cloud_engine)
    async with pool_of(cloud_engine, idle_seconds=0.1) as pool:
        await one(pool, "s", prompt, right[:4])
        async with asyncio.timeout(30):
            while len(pool):
                await asyncio.sleep(0.02)
        assert await running_and_kv(cloud_engine) == (0, 0)
        assert await in_rounds(cloud_engine, pool, "s", prompt + right[:5], right[5:]) == right[5:]
        assert pool.closed[CloseReason.IDLE] >= 1


async def test_only_an_idle_least_recently_used_request_makes_room(
    cloud_engine: CloudEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, right = await question_and_answer(cloud_engine)
    async with pool_of(cloud_engine, limit=2) as pool:
        for session in ("a", "b"):
            await one(pool, session, prompt, right[:2])
        assert await pool.verify("c", VerifyRound(prompt, right[:2])) is None  # both are between two rounds
        monkeypatch.setattr(resident_pool, "GRACE_SECONDS", 0.0)
        await one(pool, "a", prompt + right[:3], right[3:5])
        await one(pool, "c", prompt, right[:2])
        await one(pool, "a", prompt + right[:6], right[6:8])
        assert (len(pool), pool.opened, pool.closed[CloseReason.ROOM]) == (2, 3, 1)
        assert await in_rounds(cloud_engine, pool, "b", prompt + right[:3], right[3:]) == right[3:]


async def test_with_a_limit_of_0_no_round_is_resident(cloud_engine: CloudEngine) -> None:
    async with pool_of(cloud_engine, limit=0) as pool:
        assert await pool.verify("s", VerifyRound([5, 6], [7])) is None


@pytest.mark.parametrize("places", [1, 4, 32])
@pytest.mark.parametrize("sessions", [0, 8, 40])
@pytest.mark.parametrize("given", [None, 1, 6, 64])
async def test_idle_sessions_take_no_place_of_a_request_whose_turn_it_is(
    places: int, sessions: int, given: int | None
) -> None:
    drafts = DraftVerifierConfig(resident_sessions=sessions, batch=BatchConfig(max_batch_size=places))
    config = CloudConfig(draft_verifier=drafts, engine_args={"max_num_seqs": given} if given else {})
    assert config.sequences + config.residents == config.vllm_args["max_num_seqs"]
    if given is None:
        assert (config.sequences, config.residents) == (places, sessions)
    else:
        assert config.sequences >= (given + 1) // 2


async def test_live_requests_leave_room_for_others() -> None:
    for blocks in range(100):
        for longest in range(1, 100):
            budget = block_budget(blocks, longest)
            assert 0 <= budget <= blocks / 2
            assert budget == 0 or blocks - budget >= longest
    assert [blocks_for(tokens, 32, 256) for tokens in (1, 32, 33, 1000)] == [1, 1, 2, 8]
