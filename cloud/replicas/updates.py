"""Rolling updates of replicas, at SIGHUP."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Protocol

from aiohttp import web
from msgspec.structs import replace

from cloud.replicas.actor import ReplicaSpec
from cloud.replicas.fleet import Fleet
from common.errors import FrameworkError

log = logging.getLogger(__name__)


class ConfiguredProcess(Protocol):
    """What runs a replica; the next one that it makes is as `spec` says."""

    spec: ReplicaSpec


class Updates:
    """Rolling updates: at SIGHUP the configuration is read again, and each replica in turn replaced by one that has it.

    One that does not start leaves all others as they were, and is started again as it was.
    """

    def __init__(
        self, fleet: Fleet, processes: Sequence[ConfiguredProcess], read_again: Callable[[], ReplicaSpec]
    ) -> None:
        self._fleet = fleet
        self._processes = processes
        self._read_again = read_again
        self._running: asyncio.Task[None] | None = None

    async def at_sighup(self, app: web.Application) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._begin)
        yield
        loop.remove_signal_handler(signal.SIGHUP)
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running

    def _begin(self) -> None:
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._update())
        else:
            log.warning("an update is under way; send SIGHUP again after it")

    async def _update(self) -> None:
        before = [process.spec for process in self._processes]
        try:
            spec = await asyncio.to_thread(self._read_again)
            for process in self._processes:
                # The front goes on as it is, and keys that only one of both knows would open nothing.
                process.spec = spec._replace(cloud=replace(spec.cloud, server=process.spec.cloud.server))
            await self._fleet.roll()
        except FrameworkError as error:
            log.error("no update: %s", error.message)
            for process, spec in zip(self._processes, before, strict=True):
                process.spec = spec
        else:
            log.info("all replicas are replaced")
