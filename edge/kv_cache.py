"""The edge's prefix cache (F3): restores the longest known prefix of a prompt, and decides what to keep of others.

It looks where restoring costs least: in the sequence itself, then in another live sequence (shared or copied inside
llama.cpp), then among the snapshots in RAM and on disk. Tenants find nothing of each other's.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from common.errors import NotFoundError
from common.protocol.prefix_hash import common_prefix
from edge.kv.prefix_store import HeldTokens, reusable
from edge.kv.radix_tree import RadixTree
from edge.kv.snapshot_format import Snapshot
from edge.kv.snapshot_index import SnapshotBudgets
from edge.kv.snapshot_store import SnapshotStore
from edge.kv.tenant_counters import TenantCounters

MIN_TOKENS = 16
"""Tokens that a snapshot must save: computing fewer is as fast as finding them."""
RESTORE_COST = 0.25
"""Upper bound of the time to restore one token from a snapshot, as a share of the time to compute it."""


class SequenceMemory(HeldTokens, Protocol):
    """What the cache needs of `edge.llama.model.Llama`; called in the engine's thread."""

    unified: bool
    """Whether all sequences share one KV buffer, so that every step reads the cells of all."""
    divisible: bool
    """Whether a restored snapshot can be cut; else it serves only prompts that begin with all of its tokens."""

    @property
    def fingerprint(self) -> str: ...
    def rewind(self, sequence: int, length: int) -> int: ...
    def copy(self, source: int, target: int, length: int) -> None: ...
    def snapshot(self, sequence: int) -> bytes: ...
    def load_snapshot(self, sequence: int, data: bytes, token_ids: list[int]) -> bool: ...


class CachedPrompt(NamedTuple):
    """A prompt, its token ids, and the number of tokens that were left for its answer."""

    prompt: str
    token_ids: list[int]
    available_tokens: int


class LlamaCppKVCache:
    """The engine's prefix store: live sequences, then snapshots in RAM, then snapshots on disk.

    `max_size`: the most snapshots, and the most prompts, that are kept; `directory` None: no disk tier. A snapshot is
    checked before it is restored; one that fails the check is dropped, and its tokens are computed again. Raises
    StartError for a directory that cannot be used. Call `restore`, `release`, `save` and `export` in the engine's
    thread, the others in any thread.
    """

    def __init__(
        self,
        max_size: int = 1000,
        ram_bytes: int = 1 << 30,
        disk_bytes: int = 4 << 30,
        directory: str | Path | None = None,
        enable_compression: bool = False,
    ) -> None:
        budgets = SnapshotBudgets(ram_bytes, disk_bytes, max_size)
        self._store = SnapshotStore(budgets, Path(directory) if directory else None, enable_compression)
        self._live: defaultdict[str, RadixTree[int]] = defaultdict(RadixTree)
        """A tree for each tenant."""
        self._indexed: dict[int, tuple[str, list[int]]] = {}
        """Each sequence's tokens in a tree: after `restore` the requested ones, after `release` those it holds."""
        self._idle: set[int] = set()
        """Sequences that were released and not used since."""
        self._max_size = max_size
        self._prompts: OrderedDict[str, CachedPrompt] = OrderedDict()
        self._counters = TenantCounters("hits", "misses", "tokens_reused", "live_hits", "ram_hits", "disk_hits")

    def restore(self, llama: SequenceMemory, sequence: int, token_ids: Sequence[int], tenant: str = "") -> int:
        """Makes `sequence` hold the longest prefix of `token_ids` that `tenant` has, and only that; returns its length.

        First keeps a snapshot of what it held, if that is long enough and neither a sequence nor a snapshot has it.
        """
        wanted = list(token_ids)
        self._store.open(llama.fingerprint, llama.divisible)
        self._idle.discard(sequence)
        source, live = self._longest_live(llama, sequence, wanted, tenant)
        own = reusable(llama, sequence, wanted, tenant)
        snapshot, tier = self._better_snapshot(wanted, live, tenant)
        stays = own if source == sequence and snapshot is None else 0
        if len(llama.held[sequence]) - stays >= MIN_TOKENS:
            self._keep(llama, sequence)
        if snapshot and llama.load_snapshot(sequence, snapshot.state, snapshot.token_ids):
            llama.rewind(sequence, common_prefix(snapshot.token_ids, wanted))
        else:
            tier = "live_hits"
            llama.copy(source, sequence, live)
        llama.owners[sequence] = tenant
        self._index(llama, sequence, wanted)
        self._clear_idle(llama)
        return self._count(tenant, len(llama.held[sequence]), tier)

    def release(self, llama: SequenceMemory, sequence: int) -> None:
        """Lets other requests find everything that `sequence` holds, the answer included."""
        self._index(llama, sequence, list(llama.held[sequence]))
        self._idle.add(sequence)

    def save(self, llama: SequenceMemory, sequence: int) -> None:
        """Keeps a snapshot of what `sequence` holds unless another one has it; called before it is overwritten."""
        self._store.open(llama.fingerprint, llama.divisible)
        self._idle.discard(sequence)
        self._keep(llama, sequence)
        self._index(llama, sequence, [])

    def close(self, llama: SequenceMemory | None = None) -> None:
        """Writes to the disk tier what waits to be written, and what the sequences of `llama` hold; ends the store."""
        if llama is not None and self._store.persistent:
            for sequence in range(len(llama.held)):
                self.save(llama, sequence)
                self._store.flush()
        self._store.close()

    def stats(self, tenant: str | None = None) -> dict[str, int]:
        """Requests that found a prefix (`hits`, and by place) or none (`misses`), tokens reused, sizes of the tiers."""
        live = sum(len(ids) for owner, ids in list(self._indexed.values()) if tenant in (None, owner))
        return self._counters.of(tenant) | {"live_tokens": live} | self._store.stats(tenant)

    def export(self, name: str, token_ids: Sequence[int], llama: SequenceMemory | None = None, tenant: str = "") -> int:
        """Writes the snapshot with the longest prefix of `token_ids` to the file `name` of the cache folder.

        With `llama`, live sequences are candidates too. Returns the number of tokens in the file, which may go on
        after that prefix. Raises RequestError for an invalid name, NotFoundError if nothing is kept.
        """
        wanted = list(token_ids)
        shared, entry = self._store.find(wanted, tenant)
        snapshot = self._store.load(entry) if entry else None
        if llama is not None:
            own = (at for at, owner in enumerate(llama.owners) if owner == tenant)
            live, sequence = max(((common_prefix(llama.held[at], wanted), at) for at in own), default=(0, 0))
            if live > (shared if snapshot else 0):
                self._store.open(llama.fingerprint, llama.divisible)
                snapshot = Snapshot(list(llama.held[sequence]), llama.snapshot(sequence))
        if snapshot is None:
            raise NotFoundError("nothing is kept of these tokens", param="token_ids")
        self._store.export(name, snapshot, tenant)
        return len(snapshot.token_ids)

    def import_(self, name: str, tenant: str = "") -> int:
        """Adds a snapshot that `tenant` exported; returns its length in tokens. RequestError if it cannot be used."""
        return self._store.import_(name, tenant)

    def flush(self) -> None:
        """Waits until all snapshots are sealed and written to the disk tier."""
        self._store.flush()

    def set_cache(self, prompt: str, token_ids: Sequence[int], available_tokens: int) -> None:
        """Remembers how a prompt was tokenized. Its KV is not stored here: it belongs to the engine's sequences."""
        self._prompts[prompt] = CachedPrompt(prompt, list(token_ids), available_tokens)
        self._prompts.move_to_end(prompt)
        while len(self._prompts) > self._max_size:
            self._prompts.popitem(last=False)

    def get_cache(self, prompt: str) -> CachedPrompt | None:
        """What `set_cache` stored for exactly this prompt; None if newer prompts displaced it."""
        if prompt in self._prompts:
            self._prompts.move_to_end(prompt)
        return self._prompts.get(prompt)

    def _longest_live(self, llama: SequenceMemory, sequence: int, wanted: list[int], tenant: str) -> tuple[int, int]:
        """The sequence with the longest prefix of `wanted` (`sequence` itself if none has more), and its length."""
        _, candidates = self._live[tenant].longest(wanted)
        lengths = {each: reusable(llama, each, wanted, tenant) for each in (sequence, *candidates)}
        source = max(lengths, key=lengths.__getitem__)
        return source, lengths[source]

    def _better_snapshot(self, wanted: list[int], live: int, tenant: str) -> tuple[Snapshot | None, str]:
        """A snapshot that is faster than computing what `live` tokens leave, and the counter of its tier."""
        shared, entry = self._store.find(wanted, tenant)
        saved = shared - live
        if entry is None or saved < MIN_TOKENS or saved < RESTORE_COST * len(entry.token_ids):
            return None, ""
        tier = "ram_hits" if entry.in_memory else "disk_hits"
        return self._store.load(entry), tier

    def _keep(self, llama: SequenceMemory, sequence: int) -> bool:
        """Makes sure that what `sequence` holds is available elsewhere, by a snapshot if need be; whether it is."""
        held, owner = list(llama.held[sequence]), llama.owners[sequence]
        if len(held) < MIN_TOKENS:
            return False
        if self._store.covers(held, owner) or self._is_held_elsewhere(llama, sequence, held):
            return True
        return self._store.enabled and self._store.keep(held, llama.snapshot(sequence), owner)

    def _clear_idle(self, llama: SequenceMemory) -> None:
        """With a unified KV, moves idle sequences into snapshots that serve as much: their cells make steps slower."""
        for sequence in self._idle if llama.unified and llama.divisible else ():
            if self._keep(llama, sequence):
                llama.rewind(sequence, 0)
                self._index(llama, sequence, [])
        self._idle.clear()

    def _is_held_elsewhere(self, llama: SequenceMemory, sequence: int, held: list[int]) -> bool:
        owner = llama.owners[sequence]
        _, holders = self._live[owner].longest(held)
        return any(each != sequence and reusable(llama, each, held, owner) == len(held) for each in holders)

    def _index(self, llama: SequenceMemory, sequence: int, token_ids: list[int]) -> None:
        if sequence in self._indexed:
            owner, indexed = self._indexed[sequence]
            self._live[owner].remove(indexed, sequence)
        self._indexed[sequence] = llama.owners[sequence], token_ids
        self._live[llama.owners[sequence]].add(token_ids, sequence)

    def _count(self, tenant: str, length: int, tier: str) -> int:
        self._counters.add(tenant, tokens_reused=length, **({"hits": 1, tier: 1} if length else {"misses": 1}))
        return length


class AblatedKVCache:
    """The cache with F3 off: keeps nothing and finds nothing."""

    def restore(self, llama: SequenceMemory, sequence: int, token_ids: Sequence[int], tenant: str = "") -> int:
        return llama.rewind(sequence, 0)

    def release(self, llama: SequenceMemory, sequence: int) -> None:
        llama.rewind(sequence, 0)

    def save(self, llama: SequenceMemory, sequence: int) -> None:
        return

    def close(self, llama: SequenceMemory | None = None) -> None:
        return

    def stats(self, tenant: str | None = None) -> dict[str, int]:
        return {}

    def set_cache(self, prompt: str, token_ids: Sequence[int], available_tokens: int) -> None:
        return

    def get_cache(self, prompt: str) -> None:
        return

    def export(self, name: str, token_ids: Sequence[int], llama: SequenceMemory | None = None, tenant: str = "") -> int:
        raise NotFoundError("nothing is kept: the cache is off")

    def import_(self, name: str, tenant: str = "") -> int:
        raise NotFoundError("nothing is kept: the cache is off")
