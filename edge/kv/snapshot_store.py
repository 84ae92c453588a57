"""Kept snapshots in two tiers, RAM and disk, each with a byte budget; least recently used out. Knows no sequences.

An entry lives in either tier or both. Sealing and writing are done by the store's own thread, loading by the caller's;
the lock is never held over any of them. What waits to be sealed can be had already: it is still the engine's own copy.
"""

import hashlib
import logging
import secrets
import threading
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common.errors import NotFoundError, RequestError, SnapshotError
from edge.kv.background_worker import Background
from edge.kv.radix_tree import TokenTrie
from edge.kv.snapshot_folder import SUFFIX, SnapshotFolder, as_request_error, file_name, open_folder
from edge.kv.snapshot_format import KEY_SIZE, Snapshot, digest, seal, unseal

WAITING = 8
"""Snapshots that may wait to be sealed; what comes on top of them is not kept."""

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Kept:
    """One snapshot: waiting to be sealed, then in RAM, on disk, or both."""

    token_ids: list[int]
    state: bytes | None = None
    data: bytes | None = None
    file: str | None = None
    file_size: int = 0

    @property
    def in_memory(self) -> bool:
        return self.state is not None or self.data is not None


class SnapshotStore:
    """Owns the folder (`directory` None: no disk tier) and its thread, until `close`.

    Budgets are in bytes; `max_size` bounds the entries of both tiers together. Raises StartError for a folder that
    cannot be used, or whose key others can read.
    """

    def __init__(self, ram_bytes: int, disk_bytes: int, directory: Path | None, max_size: int, compress: bool) -> None:
        self._ram_bytes, self._disk_bytes = ram_bytes, disk_bytes if directory else 0
        self._max_size, self._compress = max_size, compress
        self._root: SnapshotFolder | None = None
        self._key = secrets.token_bytes(KEY_SIZE)
        if directory:
            self._root, self._key = open_folder(directory)
        self._folder: SnapshotFolder | None = None
        self._fingerprint = ""
        self._lock = threading.Lock()
        self._index: TokenTrie[Kept] = TokenTrie()
        self._kept: dict[Kept, None] = {}
        """All entries, the longest unused first."""
        self._counters = Counter[str](evictions=0, dropped=0)
        self._background = Background("edge-kv-store", self._seal, WAITING)

    def open(self, fingerprint: str) -> None:
        """Begins to keep snapshots of the model that `fingerprint` names, with those that its folder holds already.

        May be called again; only another fingerprint makes a difference: nothing of the former model is kept on.
        """
        if fingerprint == self._fingerprint:
            return
        with self._lock:
            for kept in list(self._kept) if self._fingerprint else []:
                self._forget(kept, remove=False)
        self._fingerprint = fingerprint
        if self._root and self.outlives:
            try:
                self._folder = SnapshotFolder(Path(digest(fingerprint).hex()[:16]), inside=self._root)
                with self._lock:
                    self._scan(self._folder)
            except OSError as error:
                logger.warning("no KV snapshots on disk: %s: %s", self._root.path, error.strerror)

    def close(self) -> None:
        """Writes what waits to be written, then ends the thread."""
        self._background.close()
        for folder in filter(None, (self._folder, self._root)):
            folder.close()

    def flush(self) -> None:
        """Waits until everything that is to be kept can be found."""
        self._background.flush()

    @property
    def outlives(self) -> bool:
        """Whether there is a disk tier."""
        return self._root is not None and self._disk_bytes > 0

    def stats(self) -> dict[str, int]:
        with self._lock:
            in_ram, on_disk = [k for k in self._kept if k.data], [k for k in self._kept if k.file]
            return dict(self._counters) | {
                "ram_entries": len(in_ram),
                "ram_bytes": self._ram_used(),
                "disk_entries": len(on_disk),
                "disk_bytes": self._disk_used(),
            }

    @property
    def keeps(self) -> bool:
        """Whether there is any tier."""
        return self._ram_bytes > 0 or self._disk_bytes > 0

    def holds(self, token_ids: list[int]) -> bool:
        """Whether an entry makes a snapshot of these tokens needless: it has them all, and not many more."""
        with self._lock:
            shared, sharing = self._index.longest(token_ids)
        return shared == len(token_ids) and any(len(kept.token_ids) <= 2 * shared for kept in sharing)

    def find(self, token_ids: list[int]) -> tuple[int, Kept | None]:
        """The longest beginning of `token_ids` that an entry shares, and of those that do the one quickest to load."""
        with self._lock:
            shared, sharing = self._index.longest(token_ids)
        return shared, min(sharing, key=lambda kept: (not kept.in_memory, len(kept.token_ids)), default=None)

    def load(self, kept: Kept) -> Snapshot | None:
        """The entry's snapshot, checked; None, and the entry is gone, if it is not as it was when it was kept."""
        if (state := kept.state) is not None:
            return Snapshot(kept.token_ids, state)
        data, file, folder = kept.data, kept.file, self._folder
        try:
            if data is None:
                if file is None or folder is None:
                    return None  # evicted since it was found
                data = folder.read(file)
            snapshot = unseal(self._key, self._fingerprint, data)
            if snapshot.token_ids != kept.token_ids:
                raise SnapshotError("a snapshot of other tokens")
        except (SnapshotError, OSError) as fault:
            self._drop(kept, fault)
            return None
        with self._lock:
            if kept in self._kept:
                kept.data = data
                self._kept[kept] = self._kept.pop(kept)
                self._shrink()
        return snapshot

    def keep(self, token_ids: list[int], state: bytes) -> bool:
        """Keeps a snapshot; False if it is larger than every budget, or too many wait already."""
        if len(state) > max(self._ram_bytes, self._disk_bytes):
            return False
        kept = Kept(token_ids, state)
        with self._lock:
            accepted = self._background.hand_over(kept)
            if accepted:
                self._insert(kept)
            else:
                self._counters["dropped"] += 1
        return accepted

    def export(self, name: str, snapshot: Snapshot) -> None:
        """Writes a file that `import_` of the same folder takes back; RequestError says what is wrong with the name."""
        folder, file = self._named(name)
        data = seal(self._key, self._fingerprint, *snapshot, compress=self._compress)
        try:
            folder.write(file, data)
        except OSError as error:
            raise as_request_error(error, name) from error

    def import_(self, name: str) -> int:
        """Takes an exported snapshot among the kept ones; returns its length in tokens.

        Raises SnapshotError for one that is damaged or another model's, NotFoundError if there is none.
        """
        folder, file = self._named(name)
        try:
            data = folder.read(file)
        except OSError as error:
            raise as_request_error(error, name) from error
        kept = Kept(*unseal(self._key, self._fingerprint or None, data))
        if len(data) > max(self._ram_bytes, self._disk_bytes):
            raise RequestError(f"snapshot {name!r} is larger than the cache", param="name")
        if not self.holds(kept.token_ids):
            with self._lock:
                self._insert(kept)
            self._settle(kept, data, data)
        return len(kept.token_ids)

    def _seal(self, kept: Kept) -> None:
        """The store's thread, with each snapshot to be kept."""
        assert kept.state is not None
        data = file_data = seal(self._key, self._fingerprint, kept.token_ids, kept.state)
        if self._compress and self.outlives:
            file_data = seal(self._key, self._fingerprint, kept.token_ids, kept.state, compress=True)
        self._settle(kept, data, file_data)

    def _settle(self, kept: Kept, data: bytes, file_data: bytes) -> None:
        """Brings an entry into its tiers, sealed as it is to lie in RAM and on disk."""
        if self._folder is not None and len(file_data) <= self._disk_bytes:
            self._write(kept, self._folder, file_data)
        with self._lock:
            kept.state, kept.data = None, data if len(data) <= self._ram_bytes else None
            if kept not in self._kept:  # evicted meanwhile
                if kept.file and self._folder:
                    self._folder.remove(kept.file)
                return
            for older in self._index.beginnings(kept.token_ids):
                # A much shorter one is much quicker to load.
                if older is not kept and 2 * len(older.token_ids) >= len(kept.token_ids):
                    self._forget(older)
            self._shrink()

    def _write(self, kept: Kept, folder: SnapshotFolder, data: bytes) -> None:
        name = hashlib.blake2b(array("i", kept.token_ids).tobytes(), key=self._key, digest_size=16).hexdigest() + SUFFIX
        try:
            folder.write(name, data)
        except OSError as error:
            logger.warning("a KV snapshot could not be written: %s", error.strerror)
        else:
            kept.file, kept.file_size = name, len(data)

    def _scan(self, folder: SnapshotFolder) -> None:
        """Takes up what an earlier process left; what it says of itself is proven when it is loaded."""
        for name in folder.files():
            try:
                header, token_ids = folder.describe(name)
                if header.fingerprint != digest(self._fingerprint):
                    raise SnapshotError("a snapshot of another model")
            except (SnapshotError, OSError):
                self._counters["dropped"] += 1
                folder.remove(name)
            else:
                self._insert(Kept(token_ids, file=name, file_size=header.size))
        self._shrink()

    def _drop(self, kept: Kept, fault: Exception) -> None:
        logger.warning("a kept KV snapshot of %d tokens is dropped: %s", len(kept.token_ids), fault)
        with self._lock:
            self._counters["dropped"] += 1
            if kept in self._kept:
                self._forget(kept)

    # What follows belongs to whoever has the lock.

    def _insert(self, kept: Kept) -> None:
        self._index.add(kept.token_ids, kept)
        self._kept[kept] = None

    def _forget(self, kept: Kept, remove: bool = True) -> None:
        del self._kept[kept]
        self._index.remove(kept.token_ids, kept)
        if kept.file and remove and self._folder:
            self._folder.remove(kept.file)

    def _shrink(self) -> None:
        """Evicts the longest unused until the budgets hold."""
        ram, disk = self._ram_used(), self._disk_used()
        for kept in list(self._kept):
            if kept.data and ram > self._ram_bytes:
                ram, kept.data = ram - len(kept.data), None
            if kept.file and (disk > self._disk_bytes or len(self._kept) > self._max_size) and self._folder:
                self._folder.remove(kept.file)
                disk, kept.file = disk - kept.file_size, None
            if len(self._kept) > self._max_size or not (kept.in_memory or kept.file):
                self._counters["evictions"] += 1
                self._forget(kept)

    def _ram_used(self) -> int:
        return sum(len(kept.data) for kept in self._kept if kept.data)

    def _disk_used(self) -> int:
        return sum(kept.file_size for kept in self._kept if kept.file)

    def _named(self, name: str) -> tuple[SnapshotFolder, str]:
        if self._root is None:
            raise NotFoundError("there is no cache folder; edge.kv_cache.directory names one", param="name")
        return self._root, file_name(name)
