"""The processes of an engine, remembered while they live, so that all can be killed. Knows nothing of engines."""

from collections.abc import Iterable
from contextlib import suppress

import psutil


class ProcessTree:
    """`pids` and everything they have started by now; a process started later is found as long as its parent lives."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._known: list[psutil.Process] = []
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                self._known.append(psutil.Process(pid))
        self._known += self._children()

    def kill(self) -> None:
        """SIGKILL to all, which stopped processes obey too; safe against process ids that were given anew."""
        for process in {*self._known, *self._children()}:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _children(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for process in self._known:
            with suppress(psutil.NoSuchProcess):
                found += process.children(recursive=True)
        return found
