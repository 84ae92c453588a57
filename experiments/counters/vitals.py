"""Samples the memory, files and threads of the servers that this process has started."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import psutil
from msgspec import Struct

from cli.server_process import CLOUD, EDGE

SERVERS = {EDGE: "edge", CLOUD: "cloud", "start_edge.py": "edge", "start_cloud.py": "cloud"}
"""The name of a server by its program; what a server has started itself is `NAME processes`."""


class Vitals(Struct, frozen=True, kw_only=True):
    """One sample: `memory` in MiB of resident memory, `files` are open file descriptors."""

    seconds: float
    place: str
    memory: float
    files: int
    threads: int


def sample(seconds: float) -> list[Vitals]:
    """A sample of each server, and of all processes that it has started together; `seconds`: since the beginning.

    The second server of a kind is `NAME 2`.
    """
    found, count = [], Counter[str]()
    for server in sorted(psutil.Process().children(), key=lambda process: process.pid):
        kind = _name_of(server)
        if kind is None:
            continue
        count[kind] += 1
        name = kind if count[kind] == 1 else f"{kind} {count[kind]}"
        found += list(_of(seconds, name, [server]))
        with suppress(psutil.Error):
            found += list(_of(seconds, f"{name} processes", server.children(recursive=True)))
    return found


def _name_of(process: psutil.Process) -> str | None:
    with suppress(psutil.Error):
        return next((SERVERS[name] for word in process.cmdline() if (name := word.rpartition("/")[2]) in SERVERS), None)
    return None


def _of(seconds: float, place: str, processes: list[psutil.Process]) -> Iterator[Vitals]:
    memory = files = threads = 0
    for process in processes:
        with suppress(psutil.Error):
            memory += process.memory_info().rss
            files += process.num_fds()
            threads += process.num_threads()
    if threads:
        yield Vitals(seconds=seconds, place=place, memory=memory / 2**20, files=files, threads=threads)
