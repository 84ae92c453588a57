"""Follows one vLLM replica's KV events over ZMQ, and enters them into the index of prefix caches.

The index is right only if every event arrives, in order. A gap, a lost connection or an unreadable batch makes the
index forget that replica; the publisher's replay buffer then restores what it can.
"""

import asyncio
import logging
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from cloud.kv_cache import BlockHash, VLLMKVCache
from common.errors import StartError

REPLAY_SECONDS = 5.0
RECONNECT_SECONDS = 0.1
END_OF_REPLAY = -1
FRAMES = 3  # topic, sequence number, batch

logger = logging.getLogger(__name__)


def kv_events_args(directory: Path) -> dict[str, Any]:
    """vLLM's engine arguments to publish KV events on sockets in `directory`, for `get_kv_event_sources` to list.

    Events contain the token ids of all tenants, so `directory` must be private to this user.
    """
    # Each data-parallel rank needs sockets of its own: vLLM adds its number only to a path that contains "inproc".
    return {
        "kv_events_config": {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"ipc://{directory}/inproc-events",
            "replay_endpoint": f"ipc://{directory}/inproc-replay",
        }
    }


class KVEvents:
    """Keeps one replica's part of the index up to date from `start` to `close`, or within an `async with`.

    Owns a task, a SUB socket and, during a replay, a socket for it. A replica that starts later, or again, is followed
    from then on; the index holds nothing of one whose connection is lost.
    """

    def __init__(self, index: VLLMKVCache, replica: str, endpoint: str, replay_endpoint: str | None = None) -> None:
        self._index = index
        self._replica = replica
        self._endpoint = endpoint
        self._replay_endpoint = replay_endpoint
        self._expected = 0
        self._context: zmq.asyncio.Context | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def start(self) -> None:
        """Starts to follow; call it on the event loop that uses the index. Raises StartError for a wrong endpoint."""
        self._context = zmq.asyncio.Context()
        try:
            with _connection(self._context, self._endpoint):
                pass  # the task connects again; only here can a wrong address be reported
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise StartError(f"KV events of {self._replica}: {self._endpoint}: {error}") from error
        self._lose_track(0)
        self._task = asyncio.create_task(self._run(self._context), name=f"kv-events-{self._replica}")
        self._task.add_done_callback(lambda _: self._index.forget(self._replica))

    async def close(self) -> None:
        """Stops, and makes the index forget this replica. Does nothing when not started."""
        if self._task and self._context:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._context.destroy(linger=0)
            self._task = self._context = None

    async def _run(self, context: zmq.asyncio.Context) -> None:
        while True:
            # A new socket for each connection: an old one may still queue events of a cache that is lost.
            with _connection(context, self._endpoint) as (events, monitor):
                await self._follow(context, events, monitor)
            self._lose_track(0)
            logger.info("replica %s: its KV events ended; connecting again", self._replica)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _follow(
        self, context: zmq.asyncio.Context, events: zmq.asyncio.Socket, monitor: zmq.asyncio.Socket
    ) -> None:
        """Enters batches until the connection ends."""
        poller = zmq.asyncio.Poller()
        for socket in (events, monitor):
            poller.register(socket, zmq.POLLIN)
        while True:
            ready = dict(await poller.poll())
            if monitor in ready:
                change = parse_monitor_message(await monitor.recv_multipart())
                if change["event"] == zmq.EVENT_DISCONNECTED:
                    return
                await self._replay(context)
            elif events in ready:
                frames = await events.recv_multipart()
                if len(frames) != FRAMES:
                    logger.warning("replica %s: %s does not publish KV events", self._replica, self._endpoint)
                    return
                sequence = int.from_bytes(frames[1])
                if sequence > self._expected:
                    await self._replay(context)
                self._take(sequence, frames[2])

    async def _replay(self, context: zmq.asyncio.Context) -> None:
        """Starts over with all events in the publisher's replay buffer; does nothing if it has none."""
        if self._replay_endpoint is None:
            return
        self._lose_track(0)
        socket = context.socket(zmq.DEALER)
        try:
            socket.connect(self._replay_endpoint)
            async with asyncio.timeout(REPLAY_SECONDS):
                await socket.send_multipart([b"", (0).to_bytes(8)])
                while True:
                    _, _, sequence, payload = await socket.recv_multipart()
                    if int.from_bytes(sequence, signed=True) == END_OF_REPLAY:
                        return
                    self._take(int.from_bytes(sequence), payload)
                    await asyncio.sleep(0)  # reading a long replay, all of it ready, would never yield to other tasks
        except (TimeoutError, ValueError, zmq.ZMQError) as error:
            logger.warning("replica %s: no replay of its KV events: %r", self._replica, error)
        finally:
            socket.close(linger=0)

    def _take(self, sequence: int, payload: bytes) -> None:
        """Enters a batch; skips one that was already replayed."""
        if sequence < self._expected:
            return
        if sequence > self._expected:
            self._lose_track(sequence)
        self._expected = sequence + 1
        try:
            for event in _decoder.decode(payload).events:
                _enter(self._index, self._replica, event)
        except (msgspec.DecodeError, ValueError, OverflowError) as error:
            logger.warning("replica %s: KV events %d cannot be read: %s", self._replica, sequence, error)
            self._lose_track(sequence + 1)

    def _lose_track(self, expected: int) -> None:
        self._index.clear(self._replica)
        self._expected = expected


@contextmanager
def _connection(context: zmq.asyncio.Context, endpoint: str) -> Iterator[tuple[zmq.asyncio.Socket, zmq.asyncio.Socket]]:
    """A SUB socket, and a monitor socket for its connects and disconnects."""
    events = context.socket(zmq.SUB)
    monitor = events.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
    try:
        events.subscribe(b"")
        events.connect(endpoint)
        yield events, monitor
    finally:
        events.disable_monitor()
        for socket in (monitor, events):
            socket.close(linger=0)


class _Stored(msgspec.Struct, tag="BlockStored"):
    """vLLM's event of this name, with the fields that the index needs; likewise below."""

    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    token_ids: list[int]
    block_size: int
    lora_name: str | None = None
    medium: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None


class _Removed(msgspec.Struct, tag="BlockRemoved"):
    block_hashes: list[BlockHash]
    medium: str | None = None
    group_idx: int | None = None


class _Cleared(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class _Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list[_Stored | _Removed | _Cleared]


_decoder = msgspec.msgpack.Decoder(_Batch)


def _enter(index: VLLMKVCache, replica: str, event: _Stored | _Removed | _Cleared) -> None:
    """Enters one event.

    Models with several kinds of attention have a cache group for each: the first stands for all. Copies in slower
    memory are ignored, as are the other groups, which may keep only some blocks of a sequence.
    """
    if isinstance(event, _Cleared):
        index.clear(replica)
    elif event.medium not in (None, "GPU") or event.group_idx not in (None, 0):
        return
    elif isinstance(event, _Removed):
        index.remove(replica, event.block_hashes)
    elif event.block_hashes and len(event.token_ids) == len(event.block_hashes) * event.block_size:
        index.store(replica, event.block_hashes, event.parent_block_hash, event.token_ids, _extras(event))


def _extras(event: _Stored) -> list[tuple[Hashable, ...]]:
    keys = event.extra_keys or [None] * len(event.block_hashes)
    # An adapter's name is among the keys, untagged; repeated before them, it cannot be mistaken for a salt.
    adapter = () if event.lora_name is None else (event.lora_name,)
    return [(*adapter, *map(_hashable, key or ())) for key in keys]


def _hashable(key: object) -> str | bytes:
    """A name as it is; anything else (an image's place, a digest) as bytes, which no name equals."""
    return key if isinstance(key, str) else msgspec.msgpack.encode(key)
