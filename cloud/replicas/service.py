"""Runs the front and its replicas, and replaces the replicas one after another at SIGHUP."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from aiohttp import web

from cloud.replicas.actor import ReplicaSpec
from cloud.replicas.fleet import Fleet
from cloud.replicas.front import FLEET, build_app
from cloud.replicas.ray_process import RayReplica, ray_cluster, shares
from common.config_cloud import CloudConfig
from common.errors import FrameworkError
from common.http_server import serve

log = logging.getLogger(__name__)


async def serve_replicas(
    config: CloudConfig, spec: ReplicaSpec, read_again: Callable[[], ReplicaSpec], name: str
) -> None:
    """Serves until SIGINT or SIGTERM; see `common.http_server.serve`. `read_again` raises ConfigError or StartError."""
    with ray_cluster(config.ray, config.replicas):  # blocks for seconds, in which nothing is served yet
        cores = sorted(os.sched_getaffinity(0)) if not config.ray.address else []
        processes = {
            str(number): RayReplica(str(number), spec, cores=share)
            for number, share in enumerate(shares(cores, config.replicas))
        }
        app = build_app(Fleet(processes), config.server)
        updates = Updates(app[FLEET], list(processes.values()), read_again)
        app.cleanup_ctx.append(updates.at_sighup)
        await serve(app, config.server, name)


class Updates:
    """Rolling updates: at SIGHUP the configuration is read again, and each replica in turn replaced by one that has it.

    One that does not start leaves all others as they were, and is started again as it was.
    """

    def __init__(self, fleet: Fleet, processes: list[RayReplica], read_again: Callable[[], ReplicaSpec]) -> None:
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
                process.spec = spec
            await self._fleet.roll()
        except FrameworkError as error:
            log.error("no update: %s", error.message)
            for process, spec in zip(self._processes, before, strict=True):
                process.spec = spec
        else:
            log.info("all replicas are replaced")
