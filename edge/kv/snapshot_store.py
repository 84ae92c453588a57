"""KV snapshots in two tiers, RAM and disk: sealed and written in the background, checked when they are loaded.

An entry is in either tier or in both. Each tenant's snapshots are sealed with a key of their own, and a file's name
begins with the tenant: no tenant can have another's loaded, whatever the file is called. The store's own thread seals
and writes, the caller's thread loads; the lock is never held meanwhile. An entry that still waits to be sealed can be
loaded already: it has llama.cpp's own bytes.
"""

import hashlib
import logging
import secrets
import threading
from array import array
from pathlib import Path

from common.errors import NotFoundError, RequestError, SnapshotError
from edge.kv.background_worker import BackgroundWorker
from edge.kv.snapshot_folder import SUFFIX, SnapshotFolder, as_request_error, file_name, open_folder
from edge.kv.snapshot_format import KEY_SIZE, Snapshot, digest, seal, unseal
from edge.kv.snapshot_index import SnapshotBudgets, SnapshotEntry, SnapshotIndex

MAX_WAITING = 8
"""Snapshots that may wait to be sealed; further ones are dropped."""

logger = logging.getLogger(__name__)


class SnapshotStore:
    """Owns the cache folder and a thread until `close`; `directory` None: no disk tier. Evicts least recently used.

    Raises StartError for a folder that cannot be used, or whose key other users can read.
    """

    def __init__(self, budgets: SnapshotBudgets, directory: Path | None, compress: bool) -> None:
        self._budgets = budgets if directory else budgets._replace(disk_bytes=0)
        self._compress = compress
        self._root: SnapshotFolder | None = None
        self._key = secrets.token_bytes(KEY_SIZE)
        if directory:
            self._root, self._key = open_folder(directory)
        self._folder: SnapshotFolder | None = None
        """The current model's part of the cache folder."""
        self._fingerprint = ""
        self._divisible = True
        self._lock = threading.Lock()
        """Guards the index."""
        self._index = SnapshotIndex(self._budgets, self._remove_file)
        self._background = BackgroundWorker("edge-kv-store", self._seal, MAX_WAITING)

    def open(self, fingerprint: str, divisible: bool = True) -> None:
        """Selects the model that `fingerprint` names, and finds the snapshots that the folder has of it.

        Does nothing if that is the current model; else the current model's entries leave the index. `divisible`: its
        snapshots can be cut after they are loaded, so that one serves every prefix of its tokens.
        """
        if fingerprint == self._fingerprint:
            return
        if self._fingerprint:
            with self._lock:
                self._index.clear()
        self._fingerprint, self._divisible = fingerprint, divisible
        if self._root and self.persistent:
            try:
                self._folder = SnapshotFolder(Path(digest(fingerprint).hex()[:16]), inside=self._root)
                with self._lock:
                    self._scan(self._folder)
            except OSError as error:
                logger.warning("no KV snapshots on disk: %s: %s", self._root.path, error.strerror)

    def close(self) -> None:
        """Writes the snapshots that wait to be written, then ends the thread."""
        self._background.close()
        for folder in filter(None, (self._folder, self._root)):
            folder.close()

    def flush(self) -> None:
        """Waits until all waiting snapshots are sealed and written."""
        self._background.flush()

    @property
    def persistent(self) -> bool:
        """Whether there is a disk tier."""
        return self._root is not None and self._budgets.disk_bytes > 0

    @property
    def enabled(self) -> bool:
        """Whether there is any tier."""
        return self._budgets.largest > 0

    def stats(self, tenant: str | None = None) -> dict[str, int]:
        with self._lock:
            return self._index.stats(tenant)

    def covers(self, token_ids: list[int], tenant: str) -> bool:
        """Whether a snapshot of `token_ids` is needless: an entry begins with them and is at most twice as long."""
        with self._lock:
            shared, sharing = self._longest(token_ids, tenant)
        return shared == len(token_ids) and any(len(entry.token_ids) <= 2 * shared for entry in sharing)

    def find(self, token_ids: list[int], tenant: str) -> tuple[int, SnapshotEntry | None]:
        """The length of the longest prefix of `token_ids` that an entry serves, and the entry that loads fastest."""
        with self._lock:
            shared, sharing = self._longest(token_ids, tenant)
        return shared, min(sharing, key=lambda entry: (not entry.in_memory, len(entry.token_ids)), default=None)

    def load(self, entry: SnapshotEntry) -> Snapshot | None:
        """The entry's snapshot, checked; None if it was evicted or fails the check, and then the entry is removed."""
        if (state := entry.state) is not None:
            return Snapshot(entry.token_ids, state)
        data, file, folder = entry.data, entry.file, self._folder
        try:
            if data is None:
                if file is None or folder is None:
                    return None  # evicted since `find`
                data = folder.read(file)
            snapshot = unseal(self._key_of(entry.tenant), self._fingerprint, data)
            if snapshot.token_ids != entry.token_ids:
                raise SnapshotError("the snapshot is of other tokens")
        except (SnapshotError, OSError) as error:
            self._drop(entry, error)
            return None
        with self._lock:
            if entry in self._index:
                entry.data = data
                self._index.mark_used(entry)
                self._index.evict()
        return snapshot

    def keep(self, token_ids: list[int], state: bytes, tenant: str) -> bool:
        """Keeps a snapshot; False if it is larger than every budget or too many snapshots wait already."""
        if len(state) > self._budgets.largest:
            return False
        entry = SnapshotEntry(token_ids, state, tenant=tenant)
        with self._lock:
            accepted = self._background.submit(entry)
            if accepted:
                self._index.insert(entry)
            else:
                self._index.counters.add(tenant, dropped=1)
        return accepted

    def export(self, name: str, snapshot: Snapshot, tenant: str) -> None:
        """Writes a file that `import_` can read from the same folder; raises RequestError for an unusable name."""
        folder, file = self._named(name)
        data = seal(self._key_of(tenant), self._fingerprint, *snapshot, compress=self._compress)
        try:
            folder.write(file, data)
        except OSError as error:
            raise as_request_error(error, name) from error

    def import_(self, name: str, tenant: str) -> int:
        """Adds an exported snapshot to the entries; returns its length in tokens.

        Raises SnapshotError if it is damaged, another tenant's or another model's, NotFoundError if it does not exist.
        """
        folder, file = self._named(name)
        try:
            data = folder.read(file)
        except OSError as error:
            raise as_request_error(error, name) from error
        entry = SnapshotEntry(*unseal(self._key_of(tenant), self._fingerprint or None, data), tenant=tenant)
        if len(data) > self._budgets.largest:
            raise RequestError(f"snapshot {name!r} is larger than the cache", param="name")
        if not self.covers(entry.token_ids, tenant):
            with self._lock:
                self._index.insert(entry)
            self._place(entry, data, data)
        return len(entry.token_ids)

    def _longest(self, token_ids: list[int], tenant: str) -> tuple[int, list[SnapshotEntry]]:
        return (self._index.longest if self._divisible else self._index.longest_whole)(token_ids, tenant)

    def _key_of(self, tenant: str) -> bytes:
        """The key that seals a tenant's snapshots; the folder's own where there are no tenants."""
        return hashlib.blake2b(tenant.encode(), key=self._key, digest_size=KEY_SIZE).digest() if tenant else self._key

    def _seal(self, entry: SnapshotEntry) -> None:
        """Seals and places one waiting entry; runs in the store's thread."""
        assert entry.state is not None
        key = self._key_of(entry.tenant)
        data = file_data = seal(key, self._fingerprint, entry.token_ids, entry.state)
        if self._compress and self.persistent:
            file_data = seal(key, self._fingerprint, entry.token_ids, entry.state, compress=True)
        self._place(entry, data, file_data)

    def _place(self, entry: SnapshotEntry, data: bytes, file_data: bytes) -> None:
        """Puts an entry into its tiers: `data` into RAM, `file_data` on disk, both sealed."""
        if self._folder is not None and len(file_data) <= self._budgets.disk_bytes:
            self._write(entry, self._folder, file_data)
        with self._lock:
            entry.state, entry.data = None, data if len(data) <= self._budgets.ram_bytes else None
            if entry in self._index:
                if self._divisible:
                    self._index.remove_prefixes_of(entry)
                self._index.evict()
            elif entry.file:  # evicted meanwhile
                self._remove_file(entry.file)

    def _write(self, entry: SnapshotEntry, folder: SnapshotFolder, data: bytes) -> None:
        ids = array("i", entry.token_ids).tobytes()
        own = hashlib.blake2b(ids, key=self._key_of(entry.tenant), digest_size=16).hexdigest()
        name = (f"{entry.tenant}-{own}" if entry.tenant else own) + SUFFIX
        try:
            folder.write(name, data)
        except OSError as error:
            logger.warning("a KV snapshot could not be written: %s", error.strerror)
        else:
            entry.file, entry.file_size = name, len(data)

    def _scan(self, folder: SnapshotFolder) -> None:
        """Adds the snapshots that an earlier process left; they are checked when they are loaded."""
        for name in folder.files():
            tenant = name.rpartition("-")[0]
            try:
                header, token_ids = folder.describe(name)
                if header.fingerprint != digest(self._fingerprint):
                    raise SnapshotError("the snapshot is of another model")
            except (SnapshotError, OSError):
                self._index.counters.add(tenant, dropped=1)
                folder.remove(name)
            else:
                self._index.insert(SnapshotEntry(token_ids, file=name, file_size=header.size, tenant=tenant))
        self._index.evict()

    def _drop(self, entry: SnapshotEntry, error: Exception) -> None:
        logger.warning("a KV snapshot of %d tokens is dropped: %s", len(entry.token_ids), error)
        with self._lock:
            self._index.counters.add(entry.tenant, dropped=1)
            if entry in self._index:
                self._index.remove(entry)

    def _remove_file(self, name: str) -> None:
        if self._folder:
            self._folder.remove(name)

    def _named(self, name: str) -> tuple[SnapshotFolder, str]:
        if self._root is None:
            raise NotFoundError("there is no cache folder; edge.kv_cache.directory sets one", param="name")
        return self._root, file_name(name)
