"""A file of what an experiment has measured so far, so that it can go on later. Knows nothing of what is in it.

JSON lines: the head, which says what is being measured, then an entry for each piece of work that is done. A line
that a killed program left unfinished is dropped.
"""

from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from common.errors import ConfigError

H = TypeVar("H")
E = TypeVar("E")


class Journal(Generic[H, E]):
    """Owns the file; `entries` are those of earlier runs and this one."""

    def __init__(self, file: Path, head: H, type_: type[E], resume: bool) -> None:
        """Raises ConfigError for a file that is there already, or one to resume that was made with another head."""
        self.entries: list[E] = []
        self._file = file
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(msgspec.json.encode(head) + b"\n")
            return
        if not resume:
            raise ConfigError(f"{file} is there already: go on with --resume, or choose another --output")
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
        """In the file when this returns."""
        with self._file.open("ab") as out:
            out.write(msgspec.json.encode(entry) + b"\n")
        self.entries.append(entry)
