"""F3 on the cloud: which replica's prefix cache holds how much of a token sequence."""

from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import filterfalse, islice
from typing import Any

import msgspec

from common.errors import OverloadedError, RequestError

BlockHash = int | bytes
"""A block's name in its own engine; another engine may have another name for the same block."""

Content = tuple[BlockHash | None, tuple[Hashable, ...], bytes]
"""Parent block, other hashed values (salt, adapter, image), token ids: two blocks with equal ones are the same."""

ID = array("q")
"""Token ids are kept as 64-bit integers, in one bytes object for each block."""


class ReplicaStats(msgspec.Struct, frozen=True):
    """`queries` and `hits` count tokens, as in vLLM: those looked up, and those found."""

    blocks: int
    queries: int
    hits: int
    evictions: int


class CacheStats(ReplicaStats, frozen=True):
    """The figures of all replicas together, where a query's hits are those of its best replica, and of each one."""

    reserved: int
    replicas: dict[str, ReplicaStats]


class VLLMKVCache:
    """An index of the KV blocks that vLLM replicas hold, kept up to date by their KV events.

    It remembers at most `max_blocks` of each replica, so it may miss a block that exists. It names a block that no
    longer exists only while the event is on its way (vLLM reports a reset with its next step). vLLM alone allocates
    and evicts blocks. Used from one event loop only.
    """

    def __init__(self, max_blocks: int = 10000) -> None:
        self.max_blocks = max_blocks
        self._replicas: dict[str, _Replica] = {}
        self._queries = self._hits = 0
        self._named: dict[str, NamedBlocks] = {}
        self._reserved: set[int] = set()

    def longest_prefix(self, token_ids: Sequence[int], salt: str = "") -> dict[str, int]:
        """How many leading tokens each replica would take from its cache, for requests with `cache_salt` = `salt`.

        Counts whole blocks only, and never the last token, which vLLM always computes, to sample from it.
        """
        ids = array(ID.typecode, token_ids).tobytes()
        held = {name: replica.find(ids, salt) for name, replica in self._replicas.items()}
        self._queries += len(token_ids)
        self._hits += max(held.values(), default=0)
        return held

    def best_replica(self, token_ids: Sequence[int], salt: str = "") -> str | None:
        """The replica that holds the longest prefix (the first one of several); None if none holds a block of it."""
        held = self.longest_prefix(token_ids, salt)
        best = max(held, key=held.__getitem__, default=None)
        return best if best is not None and held[best] else None

    def blocks(self, replica: str) -> int:
        """Number of different blocks of `replica` in the index."""
        return len(self._replicas[replica]) if replica in self._replicas else 0

    def replicas(self) -> list[str]:
        """The names of all replicas in the index."""
        return list(self._replicas)

    def stores(self) -> Iterator[tuple[Any, ...]]:
        """The arguments of all calls of `store` that make an index with the same contents."""
        for name, replica in self._replicas.items():
            for block_hash, block in replica.blocks():
                parent, extra, ids = block.content
                yield from [(name, [block_hash], parent, array(ID.typecode, ids), [extra])] * block.copies

    def stats(self) -> CacheStats:
        """The figures since each replica was first followed."""
        replicas = {name: replica.stats() for name, replica in self._replicas.items()}
        return CacheStats(
            blocks=sum(stats.blocks for stats in replicas.values()),
            queries=self._queries,
            hits=self._hits,
            evictions=sum(stats.evictions for stats in replicas.values()),
            reserved=len(self._reserved),
            replicas=replicas,
        )

    def store(
        self,
        replica: str,
        hashes: Sequence[BlockHash],
        parent: BlockHash | None,
        token_ids: Sequence[int],
        extras: Sequence[tuple[Hashable, ...]],
    ) -> None:
        """Records that `replica` has stored one more copy of these blocks, each one the parent of the next.

        `extras[i]` holds what vLLM hashed into block i besides tokens and parent: the salt, in the first block of a
        sequence; also adapters and images, which no lookup here finds. `token_ids` fill the blocks evenly.
        """
        ids = array(ID.typecode, token_ids).tobytes()
        blocks = self._replicas.setdefault(replica, _Replica(self.max_blocks))
        width = len(ids) // len(hashes)
        for at, (block_hash, extra) in enumerate(zip(hashes, extras, strict=True)):
            blocks.store(block_hash, (parent, extra, ids[at * width : (at + 1) * width]))
            parent = block_hash

    def remove(self, replica: str, hashes: Iterable[BlockHash]) -> None:
        """Records that `replica` has evicted one copy of each of these blocks."""
        if replica in self._replicas:
            for block_hash in hashes:
                self._replicas[replica].remove(block_hash)

    def clear(self, replica: str) -> None:
        """Records that `replica` holds nothing, or that its contents are unknown."""
        self._replicas.setdefault(replica, _Replica(self.max_blocks)).clear()

    def forget(self, replica: str) -> None:
        """Removes `replica` from the index."""
        self._replicas.pop(replica, None)

    def allocate_blocks(self, count: int, name: str) -> list[int]:
        """Reserves `count` block ids, out of `max_blocks`, for a cache that the caller keeps under `name`.

        Has no effect on vLLM's blocks. Raises OverloadedError if too few are free, RequestError for a count below 1.
        """
        if count < 1:
            raise RequestError(f"{count} blocks cannot be allocated", "count")
        free = self.max_blocks - len(self._reserved)
        if count > free:
            raise OverloadedError(f"no room for {count} blocks: {free} of {self.max_blocks} are free")
        blocks = list(islice(filterfalse(self._reserved.__contains__, range(self.max_blocks)), count))
        self._reserved.update(blocks)
        self._named.setdefault(name, NamedBlocks([])).blocks.extend(blocks)
        return blocks

    def set_cache_blocks(self, name: str, blocks: Sequence[int], seq_len: int) -> None:
        """Records that `blocks` hold the first `seq_len` tokens of `name`; frees the other blocks of `name`.

        Raises RequestError unless all of them were allocated for `name`.
        """
        named = self._named.get(name, NamedBlocks([]))
        strangers = set(blocks) - set(named.blocks)
        if strangers or seq_len < 0:
            raise RequestError(f"{name!r}: blocks {sorted(strangers)} are not its own, or {seq_len} tokens are too few")
        self._reserved -= set(named.blocks) - set(blocks)
        self._named[name] = NamedBlocks(list(blocks), seq_len)

    def get_cache_blocks(self, name: str) -> "NamedBlocks | None":
        """The blocks reserved under `name`; None if there are none."""
        return self._named.get(name)

    def free_blocks(self, name: str) -> None:
        """Frees all blocks of `name`."""
        self._reserved.difference_update(self._named.pop(name, NamedBlocks([])).blocks)


@dataclass
class NamedBlocks:
    """Block ids reserved under one name, and how many tokens they hold."""

    blocks: list[int]
    seq_len: int = 0


@dataclass(slots=True)
class _Block:
    content: Content
    copies: int = 0


class _Replica:
    """The blocks of one prefix cache, by the engine's hash and by their content."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._by_hash: dict[BlockHash, _Block] = {}  # least recently stored first
        self._by_content: dict[Content, BlockHash] = {}
        self._queries = self._hits = self._evictions = 0

    def __len__(self) -> int:
        return len(self._by_hash)

    def blocks(self) -> "Iterable[tuple[BlockHash, _Block]]":
        return self._by_hash.items()

    def stats(self) -> ReplicaStats:
        return ReplicaStats(len(self), self._queries, self._hits, self._evictions)

    def find(self, ids: bytes, salt: str) -> int:
        """Number of leading tokens of `ids`, without its last one, that are held in whole blocks."""
        parent: BlockHash | None = None
        extra: tuple[Hashable, ...] = (salt,) if salt else ()
        width, found = self._width(), 0
        while width and found + width <= len(ids) - ID.itemsize:
            parent = self._by_content.get((parent, extra, ids[found : found + width]))
            if parent is None:
                break
            found += width
            extra = ()
        self._queries += len(ids) // ID.itemsize
        self._hits += found // ID.itemsize
        return found // ID.itemsize

    def store(self, block_hash: BlockHash, content: Content) -> None:
        # vLLM does not merge two requests' copies of a block, and reports the storing and removal of each.
        block = self._by_hash.pop(block_hash, None) or _Block(content)
        block.copies += 1
        self._by_hash[block_hash] = block
        self._by_content[block.content] = block_hash
        if len(self) > self._max_blocks:
            self._drop(next(iter(self._by_hash)))

    def remove(self, block_hash: BlockHash) -> None:
        self._evictions += 1
        if block_hash in self._by_hash:
            self._by_hash[block_hash].copies -= 1
            if not self._by_hash[block_hash].copies:
                self._drop(block_hash)

    def clear(self) -> None:
        self._by_hash.clear()
        self._by_content.clear()

    def _drop(self, block_hash: BlockHash) -> None:
        content = self._by_hash.pop(block_hash).content
        if self._by_content.get(content) == block_hash:
            del self._by_content[content]

    def _width(self) -> int:
        """Bytes of token ids in a block: the same in all blocks of one engine."""
        return len(next(iter(self._by_hash.values())).content[2]) if self._by_hash else 0
