"""KV events of a replica for other processes: an index of its blocks that tells of its changes, and their entry."""

import asyncio
from array import array
from collections import deque
from collections.abc import AsyncGenerator, Hashable, Iterable, Sequence
from typing import NamedTuple

from cloud.kv_cache import ID, BlockHash, VLLMKVCache

MAX_PENDING = 20000
"""Changes that a follower may be behind; then it starts over with what the index holds."""


class BlockChange(NamedTuple):
    """A call of VLLMKVCache: `store`, `remove`, `clear` or `forget`, and its arguments after the replica's name."""

    method: str
    rank: str
    arguments: tuple[object, ...] = ()


class FollowedKVCache(VLLMKVCache):
    """An index whose changes others follow. Used from one event loop only."""

    def __init__(self) -> None:
        super().__init__()
        self._followers: list[_Follower] = []

    async def changes(self) -> AsyncGenerator[list[BlockChange], None]:
        """What the index holds now, then what changes, several changes at a time, until this is closed."""
        follower = _Follower(deque(self._contents()), asyncio.Event())
        self._followers.append(follower)
        try:
            while True:
                changes = list(follower.pending)
                follower.pending.clear()
                if changes:
                    yield changes
                follower.arrived.clear()
                if not follower.pending:
                    await follower.arrived.wait()
        finally:
            self._followers.remove(follower)

    def store(
        self,
        replica: str,
        hashes: Sequence[BlockHash],
        parent: BlockHash | None,
        token_ids: Sequence[int],
        extras: Sequence[tuple[Hashable, ...]],
    ) -> None:
        super().store(replica, hashes, parent, token_ids, extras)
        self._tell(BlockChange("store", replica, (list(hashes), parent, array(ID.typecode, token_ids), list(extras))))

    def remove(self, replica: str, hashes: Iterable[BlockHash]) -> None:
        removed = list(hashes)
        super().remove(replica, removed)
        self._tell(BlockChange("remove", replica, (removed,)))

    def clear(self, replica: str) -> None:
        super().clear(replica)
        self._tell(BlockChange("clear", replica))

    def forget(self, replica: str) -> None:
        super().forget(replica)
        self._tell(BlockChange("forget", replica))

    def _tell(self, change: BlockChange) -> None:
        for follower in self._followers:
            follower.pending.append(change)
            if len(follower.pending) > MAX_PENDING:
                follower.pending.clear()
                follower.pending.extend(self._contents())
            follower.arrived.set()

    def _contents(self) -> list[BlockChange]:
        """Changes that make the same index, from whatever it was."""
        cleared = [BlockChange("clear", rank) for rank in self.replicas()]
        return cleared + [BlockChange("store", rank, tuple(arguments)) for rank, *arguments in self.stores()]


class _Follower(NamedTuple):
    pending: deque[BlockChange]
    arrived: asyncio.Event


def enter(index: VLLMKVCache, replica: str, changes: Iterable[BlockChange]) -> None:
    """Enters the changes of one replica, each rank of which has a name of its own in the index."""
    for change in changes:
        getattr(index, change.method)(f"{replica}/{change.rank}", *change.arguments)


def forget(index: VLLMKVCache, replica: str) -> None:
    """Removes all ranks of a replica."""
    for name in [name for name in index.replicas() if replica_of(name) == replica]:
        index.forget(name)


def replica_of(name: str) -> str:
    """The replica whose rank has this name in the index."""
    return name.rpartition("/")[0]
