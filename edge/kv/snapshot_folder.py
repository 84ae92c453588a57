"""A folder of sealed snapshot files: written atomically, read without following links, safe against hostile names."""

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
# O_NONBLOCK: opening a named pipe must not wait for a writer.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class SnapshotFolder:
    """An open folder, created with mode 0700; use ends with `close`. Methods raise OSError unchanged.

    All access goes through the folder's descriptor and refuses links, so that neither moving the folder nor planting
    a link in it redirects a read or a write. `inside`: the open folder that `path` is relative to.
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
        """The names of the snapshot files, the oldest first; removes temporary files that a crash left behind."""
        found: list[tuple[float, str]] = []
        for entry in os.listdir(self._fd):
            if entry.endswith(".tmp"):
                self.remove(entry)
            elif entry.endswith(SUFFIX):
                found.append((os.stat(entry, dir_fd=self._fd, follow_symlinks=False).st_mtime, entry))
        return [name for _, name in sorted(found)]

    def write(self, name: str, data: bytes) -> None:
        """Writes a file atomically: it appears under its name once all of it is on the disk."""
        temporary = f"{name}.{secrets.token_hex(4)}.tmp"
        try:
            self._create(temporary, data)
            os.rename(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError:
            self.remove(temporary)
            raise
        os.fsync(self._fd)

    def read(self, name: str) -> bytes:
        """The whole file; raises SnapshotError, before reading on, if its size differs from its header."""
        with self._open(name) as file:
            return file.read(_header(file).size)

    def describe(self, name: str) -> tuple[SnapshotHeader, list[int]]:
        """A file's header and token ids, both unverified; raises SnapshotError as `read` does."""
        with self._open(name) as file:
            header = _header(file)
            return header, read_token_ids(header, file.read(HEADER_SIZE + 4 * header.tokens))

    def remove(self, name: str) -> None:
        """Removes the file, or the link, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

    def key(self) -> bytes:
        """The secret key that seals this folder's snapshots; created with mode 0600 at the first call.

        Raises StartError if the key has another length, or if other users can read it.
        """
        try:
            return self._read_key()
        except FileNotFoundError:
            temporary = f"key.{secrets.token_hex(4)}.tmp"
            self._create(temporary, secrets.token_bytes(KEY_SIZE))
            with contextlib.suppress(FileExistsError):  # another process was first: use its key
                os.link(temporary, "key", src_dir_fd=self._fd, dst_dir_fd=self._fd, follow_symlinks=False)
            self.remove(temporary)
            return self._read_key()

    def _read_key(self) -> bytes:
        with self._open("key") as file:
            status = os.fstat(file.fileno())
            key = file.read(KEY_SIZE + 1)
        if len(key) != KEY_SIZE or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise StartError(f"{self.path / 'key'}: must be {KEY_SIZE} bytes that only you can read; remove the file")
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
                raise SnapshotError(f"{name}: not a regular file")
            yield file


def open_folder(directory: Path) -> tuple[SnapshotFolder, bytes]:
    """Opens a cache folder; returns it and its key. Raises StartError if it cannot be used."""
    try:
        folder = SnapshotFolder(directory)
        return folder, folder.key()
    except OSError as error:
        raise StartError(f"cache folder {directory}: {error.strerror}") from error


def file_name(name: str) -> str:
    """The file name of the snapshot `name`; raises RequestError for a name that could lead out of the folder."""
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"invalid snapshot name {name!r}: use letters, digits, '.', '_' and '-', and begin with a letter or digit",
            param="name",
        )
    return name + SUFFIX


def as_request_error(error: OSError, name: str) -> RequestError:
    """The error for the client that named the snapshot."""
    if error.errno == errno.ENOENT:
        return NotFoundError(f"no snapshot is named {name!r}", param="name")
    reason = "is a link" if error.errno == errno.ELOOP else error.strerror
    return RequestError(f"snapshot {name!r}: {reason}", param="name")


def _header(file: BinaryIO) -> SnapshotHeader:
    header = read_header(file.read(HEADER_SIZE))
    if os.fstat(file.fileno()).st_size != header.size:
        raise SnapshotError("the snapshot's size differs from its header")
    file.seek(0)
    return header
