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
from cloud.replicas.replica import Replica
from common.config_cloud import CloudConfig
from common.errors import EngineError, FrameworkError, StartError

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
            await roll(self._fleet)
        except FrameworkError as error:
            log.error("no update: %s", error.message)
        except Exception:  # a fault of our own: nobody waits for this task, and the next update may be free of it
            log.exception("no update")
        else:
            log.info("all replicas are replaced")
            return
        for process, spec in zip(self._processes, before, strict=True):
            process.spec = spec


async def roll(fleet: Fleet) -> None:
    """Replaces one replica after another: it drains while another one serves, ends, and is started again.

    Those that do not serve are the first. Raises StartError, and leaves the others as they are, when a new one cannot
    start.
    """
    for replica in sorted(fleet.replicas, key=lambda one: one.usable):
        await _until_another_serves(fleet, replica)
        await _replace(replica, fleet.timing.drain)
        if replica.problem:
            raise StartError(f"replica {replica.name} was not replaced: {replica.problem}")


async def _until_another_serves(fleet: Fleet, replica: Replica) -> None:
    """Also until `replica` is no longer being started; raises StartError when no other one can start."""
    others = [one for one in fleet.replicas if one is not replica]
    while not replica.settled.is_set() or (replica.usable and others and not any(one.usable for one in others)):
        if replica.usable and all(one.settled.is_set() and not one.running for one in others):
            raise StartError(f"no other replica can start: {others[0].problem}")
        await asyncio.sleep(fleet.timing.probe)


async def _replace(replica: Replica, drain_seconds: float) -> None:
    """Returns when another one is ready in its place, or could not start."""
    replica.draining = replica.running
    try:
        if replica.draining:
            await _drain(replica, drain_seconds)
        replica.settled.clear()
        await replica.process.stop()
        await replica.settled.wait()
    finally:
        replica.draining = False


async def _drain(replica: Replica, seconds: float) -> None:
    log.info("replica %s drains, and is replaced", replica.name)
    try:
        async with asyncio.timeout(seconds):
            await replica.process.drain()
    except TimeoutError:
        log.warning("replica %s still works after %g s, and is ended", replica.name, seconds)
    except EngineError as error:
        log.warning("replica %s does not drain, and is ended: %s", replica.name, error.message)


def _as_the_front_is(new: CloudConfig, old: CloudConfig) -> CloudConfig:
    """`new` with server and keys of `old`: the front keeps these, and a key that only one knows opens nothing."""
    return replace(new, server=old.server, admission=replace(new.admission, keys=old.admission.keys))
