"""Starts servers as processes of their own, restarts one that dies or hangs, and stops all of them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from cli.server_process import ServerProcess, ending
from common.errors import StartError
from common.http.first_completed import first_completed

log = logging.getLogger(__name__)

LONGEST_PAUSE = 30.0
"""Seconds before a server that fails to start is started again."""


class Supervisor:
    """Owns the servers and one task per server that restarts it when it dies or hangs.

    A server may ask those before it in `servers`: they are stopped in the reverse order, so that an edge can finish
    its answers with the cloud.
    """

    def __init__(self, servers: list[ServerProcess], report: Callable[[str], None] = log.info) -> None:
        self.servers = servers
        self._report = report
        self._restarters: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Starts all servers, waits until they are ready, and stops them at the end. Raises StartError."""
        try:
            for server in self.servers:
                self._report(f"starting the {server.name} server at {server.url}")
                await server.start()
            await self._all_ready()
            yield
        finally:
            for task in self._restarters:
                task.cancel()
            await asyncio.gather(*self._restarters, return_exceptions=True)
            for server in reversed(self.servers):
                await server.stop()

    async def _all_ready(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for server in self.servers:
                    group.create_task(self._first_start(server))
        except* StartError as errors:
            raise errors.exceptions[0] from None

    async def _first_start(self, server: ServerProcess) -> None:
        await server.wait_ready(self._report)
        waiting = [other.name for other in self.servers if not other.ready.is_set()]
        still = f" at {server.url}; still starting: {', '.join(waiting)}" if waiting else ""
        self._report(f"the {server.name} server is ready{still}")
        self._restarters.append(asyncio.create_task(self._restart(server)))

    async def _restart(self, server: ServerProcess) -> None:
        pause = 1.0
        while True:
            await first_completed(server.exited(), server.kill_if_hung())
            code = await server.exited()
            log.warning("the %s server ended with %s; restarting it in %g s", server.name, ending(code), pause)
            await asyncio.sleep(pause)
            try:
                await server.start()
                await server.wait_ready()
                pause = 1.0
            except StartError as error:
                log.warning("%s", error.message)
                pause = min(2 * pause, LONGEST_PAUSE)
