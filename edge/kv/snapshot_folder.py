"""A folder of sealed snapshots: whole files or none, and no name that leads out of it. Knows no model and no budget."""

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from common.errors import NotFoundError, RequestError, SnapshotError, StartError
from edge.kv.snapshot_format import HEADER_SIZE, KEY_SIZE, SnapshotHeader, read_header, read_token_ids

SUFFIX = ".kv"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# O_NONBLOCK: opening a named pipe must not wait for its other end.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class SnapshotFolder:
    """An open folder, made for its owner's eyes only; `close` ends it. Methods raise OSError as they meet it.

    Everything goes through the folder's descriptor and refuses links: moving the folder or planting a link in it
    leads nowhere else.
    """

    def __init__(self, path: Path, inside: "SnapshotFolder | None" = None) -> None:
        parent: int | None = None if inside is None else inside._fd
        with contextlib.suppress(FileExistsError):
            if parent is None:
                path.parent.mkdir(parents=True, exist_ok=True)
            os.mkdir(path, 0o700, dir_fd=parent)
        follow = os.O_NOFOLLOW if inside else 0
        self._fd: int = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | follow, dir_fd=parent)
        self.path = path

    def close(self) -> None:
        os.close(self._fd)

    def files(self) -> list[str]:
        """The names of the snapshots in it, the longest unused first; what a crash left half-written is removed."""
        found: list[tuple[float, str]] = []
        for entry in os.listdir(self._fd):
            if entry.endswith(".tmp"):
                self.remove(entry)
            elif entry.endswith(SUFFIX):
                found.append((os.stat(entry, dir_fd=self._fd, follow_symlinks=False).st_mtime, entry))
        return [name for _, name in sorted(found)]

    def write(self, name: str, data: bytes) -> None:
        """Makes the file appear under its name only when all of it is on the disk."""
        temporary = f"{name}.{secrets.token_hex(4)}.tmp"
        try:
            self._create(temporary, data)
            os.rename(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError:
            self.remove(temporary)
            raise
        os.fsync(self._fd)

    def read(self, name: str) -> bytes:
        """The whole file; raises SnapshotError if its size is not what its header says, without reading on."""
        with self._open(name) as file:
            return file.read(_header(file).size)

    def describe(self, name: str) -> tuple[SnapshotHeader, list[int]]:
        """What a file says of itself, unproven, and the token ids it is for; raises SnapshotError as `read` does."""
        with self._open(name) as file:
            header = _header(file)
            return header, read_token_ids(header, file.read(HEADER_SIZE + 4 * header.tokens))

    def remove(self, name: str) -> None:
        """Removes the file, or the link, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

    def key(self) -> bytes:
        """The secret that seals this folder's snapshots; made at the first call, readable by the owner alone."""
        try:
            return self._read_key()
        except FileNotFoundError:
            temporary = f"key.{secrets.token_hex(4)}.tmp"
            self._create(temporary, secrets.token_bytes(KEY_SIZE))
            with contextlib.suppress(FileExistsError):  # another process was first: its key counts
                os.link(temporary, "key", src_dir_fd=self._fd, dst_dir_fd=self._fd, follow_symlinks=False)
            self.remove(temporary)
            return self._read_key()

    def _read_key(self) -> bytes:
        with self._open("key") as file:
            about = os.fstat(file.fileno())
            key = file.read(KEY_SIZE + 1)
        if len(key) != KEY_SIZE or about.st_uid != os.geteuid() or about.st_mode & 0o077:
            raise StartError(f"{self.path / 'key'}: not {KEY_SIZE} bytes that only you can read; remove it")
        return key

    def _create(self, name: str, data: bytes) -> None:
        with open(os.open(name, _CREATE, 0o600, dir_fd=self._fd), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[BinaryIO]:
        with open(os.open(name, _READ, dir_fd=self._fd), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SnapshotError(f"{name}: not a file")
            yield file


def open_folder(directory: Path) -> tuple[SnapshotFolder, bytes]:
    """The folder and its key; raises StartError in one line if it cannot be used."""
    try:
        folder = SnapshotFolder(directory)
        return folder, folder.key()
    except OSError as error:
        raise StartError(f"cache folder {directory}: {error.strerror}") from error


def file_name(name: str) -> str:
    """The file in which a snapshot of this name lies; raises RequestError for a name that could lead elsewhere."""
    if not _NAME.fullmatch(name):
        raise RequestError(f"{name!r} is no name for a snapshot: letters, digits, '.', '_' and '-' only", param="name")
    return name + SUFFIX


def as_request_error(error: OSError, name: str) -> RequestError:
    """What the one who named the snapshot is told."""
    if error.errno == errno.ENOENT:
        return NotFoundError(f"no snapshot is called {name!r}", param="name")
    what = "a link" if error.errno == errno.ELOOP else error.strerror
    return RequestError(f"snapshot {name!r}: {what}", param="name")


def _header(file: BinaryIO) -> SnapshotHeader:
    header = read_header(file.read(HEADER_SIZE))
    if os.fstat(file.fileno()).st_size != header.size:
        raise SnapshotError("a snapshot of another length than it says")
    file.seek(0)
    return header
