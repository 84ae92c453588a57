"""Where the output of a server process goes: to this terminal, or to a file of its own."""

import fcntl
import os
import re
from pathlib import Path
from typing import IO

OWN = "error: "
"""Begins the line of a program of this project (cli/args.py)."""
RAISED = re.compile(r"[\w.]+(Error|Exception)(: |$)")
"""The end of a traceback."""


class ServerLog:
    """The file `wanted`, or the next of its name that is free; None: this terminal. As a text: where the output is."""

    def __init__(self, wanted: Path | None) -> None:
        self._path = wanted

    def opened(self) -> IO[bytes] | None:
        """The emptied file, for a server's standard output."""
        if self._path is None:
            return None
        self._path, output = _own_file(self._path)
        return output

    def __str__(self) -> str:
        return "above" if self._path is None else os.path.relpath(self._path)

    def last_error(self) -> str:
        """What this program says of its end, else the end of the last traceback, else the last line of the file."""
        if self._path is None:
            return "its output above says why"
        if not self._path.is_file():  # a device may have no end
            return f"its output went to {self._path}"
        lines = self._path.read_text(errors="replace").strip().splitlines()
        if own := [line.removeprefix(OWN) for line in lines if line.startswith(OWN)]:
            return own[-1]
        raised = [line for line in lines if RAISED.match(line)]
        return f"{(raised or lines)[-1]} (see {self})" if lines else "it printed nothing"


def _own_file(wanted: Path) -> tuple[Path, IO[bytes]]:
    """The file `wanted`, emptied, or the next of its name, such as cloud-2.log, that no running server writes to.

    A server holds the lock of its file as long as it runs: the open file is its standard output. A device, such as
    /dev/null, is anybody's.
    """
    wanted.parent.mkdir(parents=True, exist_ok=True)
    if wanted.exists() and not wanted.is_file():
        return wanted, wanted.open("ab")
    path, number = wanted, 1
    while True:
        output = path.open("ab")
        try:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            output.close()
            number += 1
            path = wanted.with_stem(f"{wanted.stem}-{number}")
        else:
            output.truncate(0)
            return path, output
