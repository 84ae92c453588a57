"""The index of KV blocks follows a real engine, and predicts what it takes from its prefix cache."""

import asyncio
import random
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import SamplingParams

from cloud.engine.engine import CloudEngine
from cloud.engine.kv_events import KVEvents, kv_events_args
from cloud.kv_cache import VLLMKVCache
from cloud.verify import stateless
from cloud.verify.round import VerifyRound
from common.types import GREEDY
from tests.cloud.engine.test_kv_events import SIZE, directory, follower, publish, publisher, stored, until
from tests.support.engines import started

MODEL = Path(__file__).parents[3] / "models" / "demo-cloud"
POOL = 24  # blocks, one of which vLLM keeps for itself: a few prompts fill it

__all__ = ["directory"]  # a fixture


class Followed:
    """A real engine and the index that follows it."""

    def __init__(self, engine: CloudEngine, index: VLLMKVCache) -> None:
        self.engine = engine
        self.index = index

    async def ask(self, token_ids: list[int], salt: str = "", max_tokens: int = 1, **options: Any) -> tuple[int, int]:
        """How many tokens the index predicts as cached, and how many vLLM then takes from its cache."""
        predicted = self.index.longest_prefix(token_ids, salt)["real"]
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False, **options)
        prompt = tokens_input(list(token_ids), cache_salt=salt or None)
        async for output in self.engine._running.generate(prompt, params, uuid.uuid4().hex):
            last = output
        return predicted, last.num_cached_tokens

    async def settle(self) -> None:
        """Returns when the index has all events so far: they are in order, and it waits for those of a new prompt."""
        marker = [random.randrange(4, 4000) for _ in range(SIZE + 1)]
        assert await self.ask(marker) == (0, 0)
        async with asyncio.timeout(20):
            while not self.index.longest_prefix(marker)["real"]:
                await asyncio.sleep(0.002)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def followed() -> AsyncIterator[Followed]:
    with tempfile.TemporaryDirectory() as path:
        args = {"dtype": "float32", "max_model_len": 256, "num_gpu_blocks_override": POOL, "block_size": SIZE}
        engine = CloudEngine(str(MODEL), args={**args, **kv_events_args(Path(path))})
        index = VLLMKVCache()
        async with started(engine):
            (source,) = engine._running.get_kv_event_sources().values()
            async with KVEvents(index, "real", source.endpoint, source.replay_endpoint):
                yield Followed(engine, index)


async def test_the_index_predicts_what_the_engine_takes_from_its_cache(followed: Followed) -> None:
    """Growing and shared prompts of three tenants in a cache too small for them; some do not read the cache."""
    rng = random.Random(3)
    stems = [[rng.randrange(4, 4000) for _ in range(200)] for _ in range(4)]
    hits = []
    for _ in range(60):
        prompt = rng.choice(stems)[: rng.choice([20, 32, 33, 64, 65, 96, 100, 128, 150, 200])]
        options = {"skip_reading_prefix_cache": True} if rng.random() < 0.1 else {}
        said, taken = await followed.ask(prompt, rng.choice(["", "a", "b"]), rng.choice([1, 1, 1, 40]), **options)
        assert taken == (0 if options else said)
        hits.append(taken)
        await followed.settle()
        assert followed.index.blocks("real") < POOL
    assert any(hits)
    assert followed.index.stats().evictions
    assert 0 in hits[30:]


async def test_answers_are_held_like_prompts_but_rejected_drafts_are_not(followed: Followed) -> None:
    prompt = [random.randrange(4, 4000) for _ in range(30)]
    right = (await stateless.verify(followed.engine, VerifyRound(prompt, [], GREEDY, 40))).token_ids
    await followed.settle()
    held = followed.index.longest_prefix([*prompt, *right, 0])["real"]
    assert held == (len(prompt) + len(right) - 1) // SIZE * SIZE
    wrong = [token ^ 1 for token in right[:8]]
    await stateless.verify(followed.engine, VerifyRound(prompt, wrong, GREEDY))
    await followed.settle()
    assert followed.index.longest_prefix([*prompt, *wrong, 0])["real"] == 0


async def test_a_reset_of_the_prefix_cache_empties_the_index(followed: Followed) -> None:
    prompt = [random.randrange(4, 4000) for _ in range(100)]
    await followed.ask(prompt)
    await followed.settle()
    assert followed.index.longest_prefix(prompt)["real"] == 96
    assert await followed.engine._running.reset_prefix_cache()
    await followed.settle()
    assert followed.index.blocks("real") == 1  # what settling stored
    assert await followed.ask(prompt) == (0, 0)


async def test_a_real_engine_and_another_replica_are_compared(followed: Followed, directory: Path) -> None:
    prompt = [random.randrange(4, 4000) for _ in range(100)]
    await followed.ask(prompt)
    await followed.settle()
    with publisher(directory) as source:
        async with follower(followed.index, source, "other"):
            publish(source, stored(1, 2, tokens=prompt))
            await until(followed.index, 2, "other")
            assert followed.index.longest_prefix(prompt) == {"real": 96, "other": 64}
            assert followed.index.best_replica(prompt) == "real"
            assert followed.index.best_replica(prompt, "a") is None
            publish(source, stored(3, 4, tokens=prompt, salt="a"))
            await until(followed.index, 4, "other")
            assert followed.index.best_replica(prompt, "a") == "other"
