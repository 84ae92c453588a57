"""The output of a batch: one line for each result, in the order in which they come; at the end in that of the input.

A batch that ends early, however it ends, leaves a file with which it is resumed.
"""

import fcntl
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

import msgspec
import numpy as np
from msgspec import Struct

from common.batch.batch_input import BatchInput
from common.batch.lines import PREFIX, BatchResult, is_final
from common.errors import ConfigError

MISSING = -1
BEGINNING = f'{{"id":"{PREFIX}'.encode()
"""Of each line: what is left of one that was torn begins so, too."""


class _Status(Struct):
    status_code: int


class _Head(Struct):
    """The part of a result that tells whose it is, and whether it is kept."""

    id: str
    response: _Status | None


class BatchOutput:
    """Owns the file while it is open; use `with`. Memory: 24 bytes for each line of the input."""

    def __init__(self, path: Path, given: BatchInput, resume: bool) -> None:
        """Raises ConfigError for a file with content unless `resume`, one that another batch has written, or writes."""
        self.path = path
        self.failed = 0
        """Lines whose result is no answer."""
        self.finished = 0
        """Lines with a result that is kept."""
        self._places = array("q", [MISSING]) * len(given)
        """Where in the file the result of each line begins."""
        if path.exists() and (path.samefile(given.path) or (not resume and path.stat().st_size)):
            raise ConfigError(f"{path} already exists: continue with --resume, or choose another --output")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("a+b", buffering=0)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from error
        try:
            self._lock()
            self._size = self._read_earlier(given)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def has(self, index: int) -> bool:
        """Whether the line has a result that is kept."""
        return self._places[index] != MISSING

    def add(self, index: int, result: BatchResult) -> None:
        """Writes the result of one line; it is in the file when this returns. Raises ConfigError, e.g. disk full."""
        data = msgspec.json.encode(result) + b"\n"
        try:
            if self._file.write(data) != len(data):
                raise ConfigError(f"{self.path}: the disk is full")
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror or error}") from error
        self._keep(index, self._size, result.answered)
        self._size += len(data)

    def in_order(self) -> Iterator[bytes]:
        """The results that there are, in the order of the input."""
        with self.path.open("rb") as file:
            for place in self._places:
                if place != MISSING:
                    file.seek(place)
                    yield file.readline()

    def order(self) -> None:
        """Puts the results into the order of the input; the file is whole at any moment."""
        ordered = self.path.with_name(f"{self.path.name}.ordered")
        try:
            with ordered.open("wb") as file:
                file.writelines(self.in_order())
                file.flush()
                os.fsync(file.fileno())
            ordered.replace(self.path)
        except OSError as error:
            ordered.unlink(missing_ok=True)
            raise ConfigError(f"{self.path}: {error.strerror or error}") from error

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    def _keep(self, index: int, place: int, answered: bool) -> None:
        self.finished += not self.has(index)
        self.failed += not answered
        self._places[index] = place

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{self.path}: another program writes it") from error

    def _read_earlier(self, given: BatchInput) -> int:
        """Takes the results of an earlier run, and drops an incomplete last line; returns the file's size."""
        places = np.argsort(given.keys)
        keys = given.keys[places]
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    if not line.startswith(BEGINNING[: len(line)]):
                        raise ConfigError(f"{self.path}, line {number} is no result of a batch")
                    self._file.truncate(end)
                    break
                key, status = self._head(line, number)
                at = int(np.searchsorted(keys, np.uint64(key)))
                if at == len(keys) or int(keys[at]) != key:
                    raise ConfigError(
                        f"{self.path}, line {number} answers no line of {given.path}: choose another --output"
                    )
                index = int(places[at])
                if status is not None and is_final(status) and not self.has(index):
                    self._keep(index, end, status < 300)
                end += len(line)
        return end

    def _head(self, line: bytes, number: int) -> tuple[int, int | None]:
        """The key of a result, and the status of its reply."""
        try:
            head = msgspec.json.decode(line, type=_Head)
            key = int(head.id.removeprefix(PREFIX), 16)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            raise ConfigError(f"{self.path}, line {number} is no result of a batch") from error
        return key, head.response.status_code if head.response else None
