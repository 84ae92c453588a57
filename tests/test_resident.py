"""Live requests on the demo model: exact, nothing computed twice, few enough, and gone as soon as nobody needs them."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from vllm.v1.metrics.reader import Counter, get_metrics_snapshot

from cloud import resident, stateless
from cloud.engine import CloudEngine
from cloud.resident import Closed, ResidentPool, block_budget, blocks_for, default_limit
from cloud.resident_request import can_reside
from cloud.rounds import Round
from common.errors import ContextLengthError, RequestError
from common.types import GREEDY, Sampling, Verdict
from tests.conftest import CLOUD_CONTEXT as CONTEXT
from tests.test_cloud_engine import plain, prompts, running_and_kv

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOT = Sampling(temperature=1.5)


@asynccontextmanager
async def pool_of(engine: CloudEngine, limit: int = 16, idle_seconds: float = 60.0) -> AsyncIterator[ResidentPool]:
    """A pool that leaves nothing behind in the engine."""
    pool = ResidentPool(engine, limit, idle_seconds)
    try:
        yield pool
    finally:
        await pool.close()
    assert len(pool) == 0
    assert await settled(engine) == (0, 0)


async def settled(engine: CloudEngine) -> tuple[float, float]:
    """Requests running and KV in use, once no closing is on its way."""
    return await running_and_kv(engine)


def with_errors(rng: random.Random, draft: list[int], error: float, vocab_size: int) -> list[int]:
    return [rng.randrange(vocab_size) if rng.random() < error else token for token in draft]


async def in_rounds(
    engine: CloudEngine, pool: ResidentPool, session: str, prompt: list[int], right: list[int], error: float = 0.25
) -> list[int]:
    """The answer by drafts of 0 to 16 tokens; those that may not be resident are verified stateless."""
    rng = random.Random(session)
    drawn: list[int] = []
    while len(drawn) < len(right):
        draft = right[len(drawn) :][: rng.randrange(17)]
        asked = Round(prompt + drawn, with_errors(rng, draft, error, engine.vocab_size), GREEDY)
        verdict = await pool.verify(session, asked) or await stateless.verify(engine, asked)
        assert verdict.token_ids[: verdict.accepted] == asked.draft[: verdict.accepted]
        drawn += verdict.token_ids
        if verdict.finished:
            break
    return drawn[: len(right)]


async def one(pool: ResidentPool, session: str, committed: list[int], draft: list[int], **other: Any) -> Verdict:
    verdict = await pool.verify(session, Round(committed, draft, **other))
    assert verdict is not None
    return verdict


@pytest.mark.parametrize("length", range(17))
async def test_greedy_tokens_are_the_same_for_every_draft_length(cloud_engine: CloudEngine, length: int) -> None:
    prompt = prompts(cloud_engine)[0]
    right = await plain(cloud_engine, prompt)
    rng = random.Random(length)
    drawn: list[int] = []
    async with pool_of(cloud_engine) as pool:
        while len(drawn) < len(right):
            draft = with_errors(rng, right[len(drawn) : len(drawn) + length], 0.25, cloud_engine.vocab_size)
            verdict = await one(pool, "s", prompt + drawn, draft)
            drawn += verdict.token_ids
            if verdict.finished:
                break
        assert pool.opened == 1
    assert drawn[: len(right)] == right


async def test_greedy_tokens_are_the_same_for_64_sessions_of_which_a_quarter_is_live(cloud_engine: CloudEngine) -> None:
    asked = [prompt + [5 + n] for n in range(11) for prompt in prompts(cloud_engine)][:64]
    right = [await plain(cloud_engine, prompt) for prompt in asked]
    async with pool_of(cloud_engine, limit=16) as pool:
        jobs = [
            in_rounds(cloud_engine, pool, f"{n}", prompt, answer)
            for n, (prompt, answer) in enumerate(zip(asked, right, strict=True))
        ]
        assert await asyncio.gather(*jobs) == right
        assert pool.continued > pool.opened >= 16
