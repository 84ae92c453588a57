"""An index in another process is the same as the replica's own, from whatever moment it follows."""

import asyncio
import random
from collections.abc import AsyncGenerator

import pytest

from cloud.kv_cache import VLLMKVCache
from cloud.replicas import block_changes
from cloud.replicas.block_changes import BlockChange, FollowedKVCache, enter, forget, replica_of
from tests.cloud.test_kv_cache import store

PROMPTS = [[seed * 1000 + at for at in range(100)] for seed in range(4)]


async def follow(index: VLLMKVCache, name: str, changes: AsyncGenerator[list[BlockChange], None]) -> None:
    async for some in changes:
        enter(index, name, some)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def same(index: VLLMKVCache, own: FollowedKVCache) -> bool:
    """Whether both find the same of every prompt, and hold as many blocks."""
    found = [index.longest_prefix(prompt, "salt").get("a/0", 0) for prompt in PROMPTS]
    return found == [own.longest_prefix(prompt, "salt").get("0", 0) for prompt in PROMPTS] and (
        index.blocks("a/0") == own.blocks("0")
    )


@pytest.mark.parametrize("limit", [20000, 3], ids=["in step", "far behind"])
async def test_a_follower_has_what_the_replica_has_after_any_changes(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_changes, "MAX_PENDING", limit)
    own, index, source = FollowedKVCache(), VLLMKVCache(), random.Random(3)
    stored = [store(own, "0", PROMPTS[0], 16, "salt") for _ in range(2)]  # two copies, before anyone follows
    following = asyncio.create_task(follow(index, "a", own.changes()))
    await settled()
    assert same(index, own)
    for step in range(60):
        match source.choice(["store", "store", "remove", "clear"]):
            case "store":
                stored.append(store(own, "0", source.choice(PROMPTS), 16, "salt"))
            case "remove" if stored:
                own.remove("0", stored.pop(source.randrange(len(stored))))
            case "clear" if step % 7 == 0:
                own.clear("0")
                stored.clear()
        if source.random() < 0.3:
            await settled()
            assert same(index, own)
    await settled()
    assert same(index, own) and own.blocks("0")
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert not own._followers


def test_a_lost_replica_is_forgotten_with_all_its_ranks() -> None:
    index = VLLMKVCache()
    for name in ("a/0", "a/1", "b/0"):
        store(index, name, PROMPTS[0], 16)
    forget(index, "a")
    assert [replica_of(name) for name in index.replicas()] == ["b"]
