"""Remembers the processes of an engine, with all their children, so that all of them can be killed."""

from collections.abc import Iterable
from contextlib import suppress

import psutil


class ProcessTree:
    """`pids` and all their descendants so far; one started later is found as long as its parent is alive."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._known: list[psutil.Process] = []
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                self._known.append(psutil.Process(pid))
        self._known += self._children()

    def kill(self) -> None:
        """Sends SIGKILL, which also ends stopped processes, to all; process ids that were reused are left alone."""
        for process in {*self._known, *self._children()}:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _children(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for process in self._known:
            with suppress(psutil.NoSuchProcess):
                found += process.children(recursive=True)
        return found
