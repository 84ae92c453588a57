"""The index of vLLM's blocks finds what a replica holds, for the right tenant, and never evicted blocks."""

import random
from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest

from cloud.kv_cache import BlockHash, VLLMKVCache
from common.errors import OverloadedError, RequestError


def chain(token_ids: Sequence[int], size: int, salt: str = "") -> list[BlockHash]:
    """Names of the full blocks of a sequence; each covers all tokens before it, as vLLM's hashes do."""
    ends = range(size, len(token_ids) + 1, size)
    return [hash((salt, size, tuple(token_ids[:end]))) for end in ends]


def store(index: VLLMKVCache, replica: str, token_ids: Sequence[int], size: int, salt: str = "") -> list[BlockHash]:
    """Records in the index that `replica` has stored all full blocks of a sequence."""
    hashes = chain(token_ids, size, salt)
    extras: list[tuple[str, ...]] = [(salt,) if salt and not at else () for at in range(len(hashes))]
    index.store(replica, hashes, None, token_ids[: len(hashes) * size], extras)
    return hashes


def test_whole_blocks_are_found_but_never_the_last_token() -> None:
    index = VLLMKVCache()
    tokens = list(range(100))
    store(index, "a", tokens, 32)
    asked = {0: 0, 1: 0, 32: 0, 33: 32, 64: 32, 65: 64, 96: 64, 97: 96, 100: 96}
    assert {length: index.longest_prefix(tokens[:length])["a"] for length in asked} == asked
    assert index.longest_prefix([*tokens[:40], 7, *tokens[41:]]) == {"a": 32}
    assert index.longest_prefix([7, *tokens[1:]]) == {"a": 0}


def test_a_sequence_stored_in_parts_is_found_as_one() -> None:
    index = VLLMKVCache()
    tokens = list(range(64))
    first, second, *rest = chain(tokens, 16)
    index.store("a", rest, second, tokens[32:], [()] * 2)
    assert index.longest_prefix([*tokens, 0]) == {"a": 0}
    index.store("a", [first, second], None, tokens[:32], [()] * 2)
    assert index.longest_prefix([*tokens, 0]) == {"a": 64}
    index.remove("a", [second])
    assert index.longest_prefix([*tokens, 0]) == {"a": 16}


def test_tenants_never_see_each_others_blocks() -> None:
    index = VLLMKVCache()
    tokens = list(range(65))
    salts = ("", "a", "b")
    for stored in salts:
        for asked in salts:
            index.clear("r")
            store(index, "r", tokens, 32, stored)
            assert index.longest_prefix(tokens, asked)["r"] == (64 if asked == stored else 0)


def test_replicas_of_different_block_sizes_are_compared_by_tokens() -> None:
    index = VLLMKVCache()
    tokens = list(range(100))
    assert index.best_replica(tokens) is None
    for replica, size in (("coarse", 64), ("fine", 16), ("other", 16)):
        store(index, replica, tokens[:90] if replica == "fine" else tokens, size)
    store(index, "other", [5] * 100, 16)
    assert index.longest_prefix(tokens) == {"coarse": 64, "fine": 80, "other": 96}
    assert index.best_replica(tokens) == "other"
    index.forget("other")
    assert index.best_replica(tokens) == "fine"
    assert index.best_replica([9, *tokens]) is None
    assert index.blocks("other") == 0


def test_a_block_is_held_until_its_last_copy_is_removed() -> None:
    index = VLLMKVCache()
    tokens = list(range(33))
    (block,) = store(index, "a", tokens, 32)
    store(index, "a", tokens, 32)
    assert index.blocks("a") == 1
    index.remove("a", [block])
    assert index.longest_prefix(tokens) == {"a": 32}
    index.remove("a", [block])
    assert index.longest_prefix(tokens) == {"a": 0}
    index.remove("a", [block])  # a block that is not in the index changes nothing
    assert (index.blocks("a"), index.stats().evictions) == (0, 3)


def test_blocks_of_adapters_and_images_are_held_but_never_found() -> None:
    index = VLLMKVCache()
    tokens = list(range(33))
    for at, extra in enumerate([("adapter", "adapter"), (("image", 3),), (b"digest",)]):
        index.store("a", [at], None, tokens[:32], [extra])
        assert index.blocks("a") == at + 1
        assert index.longest_prefix(tokens, "adapter") == index.longest_prefix(tokens) == {"a": 0}


def test_the_least_recently_stored_block_is_forgotten_first() -> None:
    index = VLLMKVCache(max_blocks=3)
    sequences = [[n] * 33 for n in range(4)]
    for sequence in (*sequences[:3], sequences[0], sequences[3]):
        store(index, "a", sequence, 32)
        assert index.blocks("a") <= 3
    assert [index.longest_prefix(sequence)["a"] for sequence in sequences] == [32, 0, 32, 32]


def test_random_events_leave_what_a_search_of_all_blocks_finds() -> None:
    rng = random.Random(1)
    index = VLLMKVCache()
    held: dict[str, Counter[BlockHash]] = {"small": Counter(), "large": Counter()}
    sizes = {"small": 4, "large": 8}
    for replica in held:
        index.clear(replica)
    found = 0
    for _ in range(3000):
        replica, salt = rng.choice(list(sizes)), rng.choice(["", "a", "b"])
        size = sizes[replica]
        tokens = rng.choices(range(2), k=rng.randrange(size, 40))
        if rng.random() < 0.3:
            held[replica].update(store(index, replica, tokens, size, salt))
        elif held[replica] and rng.random() < 0.8:
            gone = rng.choice(list(held[replica]))
            index.remove(replica, [gone])
            held[replica] -= Counter([gone])
        wanted = {}
        for name, size in sizes.items():
            hashes = chain(tokens[:-1], size, salt)
            missing = next((at for at, block in enumerate(hashes) if not held[name][block]), len(hashes))
            wanted[name] = missing * size
        assert index.longest_prefix(tokens, salt) == wanted
        assert {name: index.blocks(name) for name in sizes} == {name: len(held[name]) for name in sizes}
        found += sum(wanted.values())
    assert found


def test_stats_count_tokens_looked_up_and_found() -> None:
    index = VLLMKVCache()
    tokens = list(range(65))
    blocks = store(index, "a", tokens, 32)
    store(index, "b", tokens[:40], 32)
    index.longest_prefix(tokens)
    index.best_replica([1, 2, 3])
    index.remove("a", blocks[1:])
    index.clear("b")
    assert msgspec.to_builtins(index.stats()) == {
        "blocks": 1,
        "queries": 68,
        "hits": 64,
        "evictions": 1,
        "reserved": 0,
        "replicas": {
            "a": {"blocks": 1, "queries": 68, "hits": 64, "evictions": 1},
            "b": {"blocks": 0, "queries": 68, "hits": 32, "evictions": 0},
        },
    }


def test_blocks_are_reserved_by_name_and_freed() -> None:
    cache = VLLMKVCache(max_blocks=10)
    blocks = cache.allocate_blocks(5, "prompt_hash")
    cache.set_cache_blocks("prompt_hash", blocks, seq_len=80)
    held = cache.get_cache_blocks("prompt_hash")
    assert held and (held.blocks, held.seq_len) == (blocks, 80)
    others = cache.allocate_blocks(5, "other")
    assert not set(blocks) & set(others)
    with pytest.raises(OverloadedError, match="no room for 1 blocks: 0 of 10 are free"):
        cache.allocate_blocks(1, "third")
    cache.set_cache_blocks("prompt_hash", blocks[:3], seq_len=40)
    assert cache.allocate_blocks(2, "third") == blocks[3:]
    cache.free_blocks("other")
    cache.free_blocks("other")
    assert (cache.get_cache_blocks("other"), cache.stats().reserved) == (None, 5)


def test_blocks_of_another_name_are_refused() -> None:
    cache = VLLMKVCache()
    blocks = cache.allocate_blocks(2, "mine")
    for name, given, seq_len in (("other", blocks, 1), ("mine", [*blocks, 9], 1), ("mine", blocks, -1)):
        with pytest.raises(RequestError):
            cache.set_cache_blocks(name, given, seq_len)
    for count in (0, -1):
        with pytest.raises(RequestError):
            cache.allocate_blocks(count, "mine")
    assert cache.stats().reserved == 2
