"""The entries of the snapshot store: search by token prefix, order of use, byte budgets of the RAM and disk tiers."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from edge.kv.radix_tree import RadixTree
from edge.kv.tenant_counters import TenantCounters


class SnapshotBudgets(NamedTuple):
    """What the store may keep: bytes in each tier (0: no such tier), and entries of both tiers together."""

    ram_bytes: int
    disk_bytes: int
    max_entries: int

    @property
    def largest(self) -> int:
        """The most bytes that one snapshot may have."""
        return max(self.ram_bytes, self.disk_bytes)


@dataclass(eq=False)
class SnapshotEntry:
    """One snapshot: first llama.cpp's own bytes (`state`), then sealed in RAM (`data`), on disk (`file`), or both."""

    token_ids: list[int]
    state: bytes | None = None
    data: bytes | None = None
    file: str | None = None
    file_size: int = 0
    """In bytes."""
    tenant: str = ""

    @property
    def in_memory(self) -> bool:
        return self.state is not None or self.data is not None


class SnapshotIndex:
    """All entries, least recently used first. Not thread-safe: the store calls everything under its lock.

    Each tenant finds its own entries; the budgets are for all together. `remove_file` removes the file of a name.
    """

    def __init__(self, budgets: SnapshotBudgets, remove_file: Callable[[str], None]) -> None:
        self._budgets = budgets
        self._remove_file = remove_file
        self._trees: defaultdict[str, RadixTree[SnapshotEntry]] = defaultdict(RadixTree)
        self._entries: dict[SnapshotEntry, None] = {}
        self.counters = TenantCounters("evictions", "dropped")

    def __contains__(self, entry: SnapshotEntry) -> bool:
        return entry in self._entries

    def longest(self, token_ids: list[int], tenant: str) -> tuple[int, list[SnapshotEntry]]:
        """The length of the longest prefix that any entry shares with `token_ids`, and the entries that share it."""
        return self._trees[tenant].longest(token_ids)

    def longest_whole(self, token_ids: list[int], tenant: str) -> tuple[int, list[SnapshotEntry]]:
        """The length of the longest entries that are prefixes of `token_ids`, and these entries."""
        prefixes = self._trees[tenant].prefixes_of(token_ids)
        length = max((len(entry.token_ids) for entry in prefixes), default=0)
        return length, [entry for entry in prefixes if len(entry.token_ids) == length]

    def insert(self, entry: SnapshotEntry) -> None:
        self._trees[entry.tenant].add(entry.token_ids, entry)
        self._entries[entry] = None

    def remove(self, entry: SnapshotEntry, keep_file: bool = False) -> None:
        del self._entries[entry]
        self._trees[entry.tenant].remove(entry.token_ids, entry)
        if entry.file and not keep_file:
            self._remove_file(entry.file)

    def clear(self) -> None:
        """Removes all entries; their files stay."""
        for entry in list(self._entries):
            self.remove(entry, keep_file=True)

    def mark_used(self, entry: SnapshotEntry) -> None:
        """Makes `entry` the most recently used."""
        self._entries[entry] = self._entries.pop(entry)

    def remove_prefixes_of(self, entry: SnapshotEntry) -> None:
        """Removes the entries that `entry` makes needless: prefixes of it with at least half of its tokens.

        A much shorter one stays, because it loads much faster.
        """
        for other in self._trees[entry.tenant].prefixes_of(entry.token_ids):
            if other is not entry and 2 * len(other.token_ids) >= len(entry.token_ids):
                self.remove(other)

    def evict(self) -> None:
        """Evicts the least recently used entries until the budgets hold."""
        ram_bytes, disk_bytes, max_entries = self._budgets
        ram, disk = self._ram_used(), self._disk_used()
        for entry in list(self._entries):
            if entry.data and ram > ram_bytes:
                ram, entry.data = ram - len(entry.data), None
            if entry.file and (disk > disk_bytes or len(self._entries) > max_entries):
                self._remove_file(entry.file)
                disk, entry.file = disk - entry.file_size, None
            if len(self._entries) > max_entries or not (entry.in_memory or entry.file):
                self.counters.add(entry.tenant, evictions=1)
                self.remove(entry)

    def stats(self, tenant: str | None = None) -> dict[str, int]:
        """Counters, and what the tiers hold, of one tenant or (None) of all."""
        entries = [entry for entry in self._entries if tenant in (None, entry.tenant)]
        return self.counters.of(tenant) | {
            "ram_entries": sum(1 for entry in entries if entry.data),
            "ram_bytes": sum(len(entry.data) for entry in entries if entry.data),
            "disk_entries": sum(1 for entry in entries if entry.file),
            "disk_bytes": sum(entry.file_size for entry in entries if entry.file),
        }

    def _ram_used(self) -> int:
        return sum(len(entry.data) for entry in self._entries if entry.data)

    def _disk_used(self) -> int:
        return sum(entry.file_size for entry in self._entries if entry.file)
