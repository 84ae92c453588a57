"""Keeps what an experiment has measured so far in a file, so that it can be resumed.

JSON lines: a head that says what is measured, then one entry for each finished piece of work. An incomplete last line,
left by a killed program, is dropped.
"""

from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from common.errors import ConfigError

H = TypeVar("H")
E = TypeVar("E")


class Journal(Generic[H, E]):
    """Owns the file; `entries` has the entries of earlier runs and of this one."""

    def __init__(self, file: Path, head: H, type_: type[E], resume: bool) -> None:
        """Raises ConfigError for a file that exists without `resume`, and for one with another head."""
        self.entries: list[E] = []
        self._file = file
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(msgspec.json.encode(head) + b"\n")
            return
        if not resume:
            raise ConfigError(f"{file} already exists: continue with --resume, or choose another --output")
        whole, _, unfinished = file.read_bytes().rpartition(b"\n")
        lines = whole.split(b"\n")
        try:
            if msgspec.json.decode(lines[0], type=type(head)) != head:
                raise ConfigError(f"{file} was measured with other options: {lines[0].decode()}")
            self.entries = [msgspec.json.decode(line, type=type_) for line in lines[1:]]
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{file} is not a journal of this experiment: {error}") from error
        if unfinished:
            file.write_bytes(whole + b"\n")

    def add(self, entry: E) -> None:
        """Appends an entry; it is in the file when this returns."""
        with self._file.open("ab") as out:
            out.write(msgspec.json.encode(entry) + b"\n")
        self.entries.append(entry)
