"""The index of KV blocks follows vLLM's own publisher, whatever is lost, repeated or unreadable."""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch, ZmqEventPublisher

from cloud.engine import kv_events
from cloud.engine.kv_events import KVEvents, kv_events_args
from cloud.kv_cache import VLLMKVCache
from common.errors import StartError

SIZE = 32
TOKENS = list(range(100, 165))


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path, because a socket's path has at most about 100 characters."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@contextmanager
def publisher(directory: Path, rank: int = 0, replay: bool = True) -> Iterator[ZmqEventPublisher]:
    config = kv_events_args(directory)["kv_events_config"]
    made = ZmqEventPublisher(rank, config["endpoint"], config["replay_endpoint"] if replay else None)
    try:
        yield made
    finally:
        made.shutdown()


def follower(index: VLLMKVCache, source: ZmqEventPublisher, replica: str = "r") -> KVEvents:
    config = source.get_publisher_config()
    return KVEvents(index, replica, config.endpoint, config.replay_endpoint)


def stored(*block_hashes: int, tokens: list[int] = TOKENS, salt: str = "", **more: Any) -> BlockStored:
    keys = [(salt,) if salt and not at else None for at in range(len(block_hashes))]
    event = {
        "block_hashes": list(block_hashes),
        "parent_block_hash": None,
        "token_ids": tokens[: len(block_hashes) * SIZE],
        "block_size": SIZE,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": keys,
        "group_idx": 0,
    }
    return BlockStored(**{**event, **more})


def publish(source: ZmqEventPublisher, *events: Any) -> None:
    source.publish(KVEventBatch(ts=0.0, events=list(events)))


def lose(source: ZmqEventPublisher, *events: Any, remembered: bool) -> None:
    """A batch that takes a sequence number but never reaches the subscriber."""
    batch = KVEventBatch(ts=0.0, events=list(events))
    source._event_queue.join()
    sequence = next(source._seq_gen)
    if remembered:
        source._buffer.append((sequence, msgspec.msgpack.encode(batch)))


def sent_while_nobody_reads(source: ZmqEventPublisher) -> None:
    """Blocks the event loop until the publisher's thread has sent everything."""
    source._event_queue.join()


async def heard(index: VLLMKVCache, source: ZmqEventPublisher) -> None:
    """Returns when everything published has reached the index, by publishing one more block."""
    publish(source, stored(99, salt="end"))
    async with asyncio.timeout(20):
        while not index.longest_prefix(TOKENS, "end")["r"]:
            await asyncio.sleep(0.005)


async def publish_until_heard(index: VLLMKVCache, source: ZmqEventPublisher, event: BlockStored) -> None:
    """Publishes until the index has a block: without a replay, what is published before the connection is lost."""
    async with asyncio.timeout(20):
        while not index.blocks("r"):
            publish(source, event)
            await asyncio.sleep(0.1)


async def until(index: VLLMKVCache, blocks: int, replica: str = "r") -> None:
    async with asyncio.timeout(20):
        while index.blocks(replica) != blocks:
            await asyncio.sleep(0.005)


async def test_stored_removed_and_cleared_blocks_are_followed(directory: Path) -> None:
    index = VLLMKVCache()
    with publisher(directory) as source:
        async with follower(index, source):
            publish(source, stored(1, 2), stored(3, salt="a"))
            await until(index, 3)
            assert (index.longest_prefix(TOKENS), index.longest_prefix(TOKENS, "a")) == ({"r": 64}, {"r": 32})
            publish(source, BlockRemoved(block_hashes=[2], medium="GPU", group_idx=0))
            await until(index, 2)
            assert (index.longest_prefix(TOKENS), index.stats().evictions) == ({"r": 32}, 1)
            publish(source, AllBlocksCleared())
            await until(index, 0)
        assert index.longest_prefix(TOKENS) == {}


@pytest.mark.parametrize("other", [{"medium": "CPU"}, {"group_idx": 1}])
async def test_only_the_first_cache_in_fast_memory_is_followed(directory: Path, other: dict[str, Any]) -> None:
    index = VLLMKVCache()
    with publisher(directory) as source:
        async with follower(index, source):
            publish(source, stored(1), stored(2, tokens=[5] * SIZE, **other))
            publish(source, BlockRemoved(**{"block_hashes": [1], "medium": "GPU", **other}))
            await heard(index, source)
            assert (index.blocks("r"), index.longest_prefix(TOKENS)) == (2, {"r": 32})


async def test_an_event_whose_tokens_do_not_fill_its_blocks_is_skipped(directory: Path) -> None:
    index = VLLMKVCache()
    with publisher(directory) as source:
        async with follower(index, source):
            publish(source, stored(1, token_ids=TOKENS[: 2 * SIZE]), stored(token_ids=TOKENS[:SIZE]))
            await heard(index, source)
            assert index.blocks("r") == 1


async def test_an_adapter_is_not_mistaken_for_a_salt(directory: Path) -> None:
    index = VLLMKVCache()
    with publisher(directory) as source:
        async with follower(index, source):
            publish(source, stored(1, lora_name="name", extra_keys=[("name",)]))
            await until(index, 1)
            assert index.longest_prefix(TOKENS, "name") == {"r": 0}


async def test_a_late_follower_gets_the_earlier_events(directory: Path) -> None:
    index = VLLMKVCache()
    with publisher(directory) as source:
        publish(source, stored(1, 2))
        publish(source, BlockRemoved(block_hashes=[2], medium="GPU", group_idx=0))
        async with follower(index, source):
            await until(index, 1)
            assert index.longest_prefix(TOKENS) == {"r": 32}


async def test_a_lost_batch_is_replayed(directory: Path) -> None:
    index = VLLMKVCache()
    with publisher(directory) as source:
        async with follower(index, source):
            publish(source, stored(1, 2))
            await until(index, 2)
            lose(source, BlockRemoved(block_hashes=[2], medium="GPU", group_idx=0), remembered=True)
            publish(source, stored(3, salt="a"), stored(4, salt="b"))
            await until(index, 3)
            assert index.longest_prefix(TOKENS) == {"r": 32}


async def test_a_batch_that_was_replayed_is_not_entered_again_when_it_arrives(directory: Path) -> None:
    index = VLLMKVCache()
    with publisher(directory) as source:
        async with follower(index, source):
            publish(source, stored(1))
            await until(index, 1)
            lose(source, stored(2, salt="a"), remembered=True)
            publish(source, stored(3, salt="b"))
            publish(source, stored(4, salt="c"))
            sent_while_nobody_reads(source)
            await until(index, 4)
            publish(source, BlockRemoved(block_hashes=[3, 4], medium="GPU", group_idx=0))
            await heard(index, source)
            assert [index.longest_prefix(TOKENS, salt)["r"] for salt in ("", "a", "b", "c")] == [32, 32, 0, 0]


@pytest.mark.parametrize("replay", [True, False])
async def test_a_batch_lost_for_good_clears_the_index(directory: Path, replay: bool) -> None:
    index = VLLMKVCache()
    with publisher(directory, replay=replay) as source:
        async with follower(index, source):
            await publish_until_heard(index, source, stored(1, 2))
            lose(source, BlockRemoved(block_hashes=[2], medium="GPU", group_idx=0), remembered=False)
            publish(source, stored(3, salt="a"))
            await until(index, 1)
            assert (index.longest_prefix(TOKENS), index.longest_prefix(TOKENS, "a")) == ({"r": 0}, {"r": 32})


async def test_a_publisher_without_an_answer_to_the_replay_is_followed_from_now_on(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_events, "REPLAY_SECONDS", 0.05)
    index = VLLMKVCache()
    with publisher(directory, replay=False) as source:
        lose(source, stored(1, 2), remembered=False)
        async with KVEvents(index, "r", source.get_publisher_config().endpoint, f"ipc://{directory}/nobody"):
            await publish_until_heard(index, source, stored(3, salt="a"))
            assert (index.longest_prefix(TOKENS), index.longest_prefix(TOKENS, "a")) == ({"r": 0}, {"r": 32})


@pytest.mark.parametrize("bad", [{"type": "Unheard"}, stored(3, extra_keys=[None, None])])
async def test_an_unreadable_batch_clears_the_index(directory: Path, bad: Any) -> None:
    index = VLLMKVCache()
    with publisher(directory) as source:
        async with follower(index, source):
            publish(source, stored(1, 2))
            await until(index, 2)
            publish(source, bad)
            publish(source, stored(4, salt="a"))
            await until(index, 1)
            assert index.longest_prefix(TOKENS, "a") == {"r": 32}


async def test_a_socket_that_does_not_publish_kv_events_is_not_followed(directory: Path) -> None:
    index = VLLMKVCache()
    socket = zmq.Context.instance().socket(zmq.PUB)
    socket.bind(f"ipc://{directory}/other")
    async with KVEvents(index, "r", f"ipc://{directory}/other") as follow:
        assert follow._task
        for _ in range(20):
            socket.send_multipart([b"1", b"2"])
            await asyncio.sleep(0.02)
        assert not follow._task.done()
        assert index.blocks("r") == 0
    socket.close(linger=0)


async def test_a_replica_is_in_the_index_only_while_it_is_followed(directory: Path) -> None:
    index = VLLMKVCache()
    follow = KVEvents(index, "r", f"ipc://{directory}/nobody")
    follow.start()
    assert index.longest_prefix(TOKENS) == {"r": 0}
    await follow.close()
    assert index.longest_prefix(TOKENS) == {}


@pytest.mark.parametrize("endpoint", ["", "nonsense", "ipc://" + "x" * 200])
async def test_a_wrong_endpoint_fails_the_start(endpoint: str) -> None:
    with pytest.raises(StartError, match="KV events of r"):
        KVEvents(VLLMKVCache(), "r", endpoint).start()


async def test_a_lost_replica_holds_nothing_and_starts_empty_when_it_returns(directory: Path) -> None:
    index = VLLMKVCache()
    with publisher(directory) as source:
        follow = follower(index, source)
        follow.start()
        publish(source, stored(1, 2))
        await until(index, 2)
    await until(index, 0)
    with publisher(directory) as source:
        publish(source, stored(1))
        await until(index, 1)
    await follow.close()
    await follow.close()


async def test_each_data_parallel_rank_is_a_replica_of_its_own(directory: Path) -> None:
    index = VLLMKVCache()
    with publisher(directory) as zero, publisher(directory, rank=1) as one:
        async with follower(index, zero, "0"), follower(index, one, "1"):
            publish(zero, stored(1))
            publish(one, stored(1, 2))
            await until(index, 1, "0")
            await until(index, 2, "1")
            assert index.best_replica(TOKENS) == "1"
            publish(one, AllBlocksCleared())
            await until(index, 0, "1")
            assert index.best_replica(TOKENS) == "0"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="only Linux lists a process's open files there")
async def test_closing_leaves_no_task_and_no_socket(directory: Path) -> None:
    index = VLLMKVCache()
    tasks = asyncio.all_tasks()
    left = []
    with publisher(directory) as source:
        for _ in range(5):
            async with follower(index, source):
                publish(source, AllBlocksCleared(), stored(1))
                await until(index, 1)
            assert asyncio.all_tasks() == tasks
            left.append(open_files())
    assert left[-1] <= left[0]
