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
from common.config_cloud import CloudConfig
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
                process.spec = spec._replace(cloud=_as_the_front_is(spec.cloud, process.spec.cloud))
            await self._fleet.roll()
        except FrameworkError as error:
            log.error("no update: %s", error.message)
            for process, spec in zip(self._processes, before, strict=True):
                process.spec = spec
        else:
            log.info("all replicas are replaced")


def _as_the_front_is(new: CloudConfig, old: CloudConfig) -> CloudConfig:
    """`new` with the server and all keys of `old`: the front keeps them, and a key that only one knows opens nothing."""
    return replace(new, server=old.server, admission=replace(new.admission, keys=old.admission.keys))
