"""The processes of an engine, with all their children: what they inherit, whether they work, and the end of all."""

import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

import psutil

GUARD = """
read -r mark; read -r end; found=yes; tidy=20
while [ $found ]; do
    found=; tidy=$((tidy - 1))
    for environment in /proc/[0-9]*/environ; do
        grep -qsF -- "$mark" "$environment" || continue
        [ $tidy -gt 0 ] && grep -qsF resource_tracker "${environment%environ}cmdline" && found=yes && continue
        pid=${environment#/proc/}; kill -s KILL "${pid%/environ}" && found=yes
    done
    sleep 0.1
done
"""
"""For a shell: kills all processes with this text in their environment, once its stdin is closed.

Python's resource tracker has two seconds to end by itself: it removes shared memory that the others leave behind.
"""


@contextmanager
def inherited(environment: Mapping[str, str]) -> Iterator[None]:
    """Sets variables that the engine's processes inherit, and afterwards restores the environment.

    `LD_PRELOAD`, with which vLLM gives its processes torch's libraries, must not reach other child processes.
    """
    names = {*environment, "LD_PRELOAD"}
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


def memory_of_children() -> int:
    """Bytes of memory that all descendants of this process use, as they load a model for example."""
    used = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            used += process.memory_info().rss
    return used


class ProcessTree:
    """`pids` and all their descendants so far; one started later is found as long as its parent is alive."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._known: list[psutil.Process] = []
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                self._known.append(psutil.Process(pid))
        self._known += self._children()
        self._cpu_seconds = 0.0

    def kill(self) -> None:
        """Sends SIGKILL, which also ends stopped processes, to all; process ids that were reused are left alone."""
        for process in {*self._known, *self._children()}:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def used_cpu(self) -> bool:
        """Whether the processes have used the CPU since the last call, and none of them is stopped."""
        before, self._cpu_seconds = self._cpu_seconds, 0.0
        stopped = False
        for process in self._known:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                self._cpu_seconds += times.user + times.system
                stopped |= process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        return self._cpu_seconds > before and not stopped

    def _children(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for process in self._known:
            with suppress(psutil.NoSuchProcess):
                found += process.children(recursive=True)
        return found


class EngineGuard:
    """A shell that kills an engine's processes when this one ends before `close`, whatever ends it.

    vLLM's engine does not notice that its server is gone, and would keep its memory. It ends while it still loads, too:
    its processes are known by what they inherit.
    """

    def __init__(self, mark: str) -> None:
        """`mark`: a variable NAME=VALUE that the engine's processes inherit, and no others. Blocks for milliseconds."""
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", GUARD],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
            env={"PATH": os.environ.get("PATH", os.defpath)},  # no other engine's mark
        )
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{mark}\n")
        self._shell.stdin.flush()

    def close(self) -> None:
        """Ends the shell; the engine's processes are left as they are."""
        self._shell.kill()
        self._shell.communicate()
