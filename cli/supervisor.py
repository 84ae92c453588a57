"""Starts both servers as processes of their own, restarts one that dies, stops all. Knows nothing of their work."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

from common.errors import StartError
from common.http.client import HTTPClient

log = logging.getLogger(__name__)

PROJECT = Path(__file__).parents[1]
START_SECONDS = 180.0
STOP_SECONDS = 30.0
"""More than a server's `drain_seconds` and the time its engine takes to end."""
LONGEST_PAUSE = 30.0


class ServerProcess:
    """One server program, a file or a module, and all processes that it starts in turn; `stop` leaves none of them."""

    def __init__(self, name: str, script: str, url: str, flags: list[str], log_file: Path | None = None) -> None:
        self.name = name
        self.url = url
        self.ready = asyncio.Event()
        program = [str(PROJECT / script)] if script.endswith(".py") else ["-m", script]
        self._command = [sys.executable, *program, *flags]
        self._log_file = log_file
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        output: IO[bytes] | None = None
        if self._log_file:
            self._log_file.parent.mkdir(exist_ok=True)
            output = self._log_file.open("wb")
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=output, stderr=output, start_new_session=True
            )
        finally:
            if output:
                output.close()

    async def exited(self) -> int:
        """Waits for the server to end by itself and returns its exit code."""
        assert self._process is not None
        code = await self._process.wait()
        self.ready.clear()
        self._signal(signal.SIGKILL)  # what it may have left behind
        return code

    async def wait_ready(self) -> None:
        """Returns when the server answers; raises StartError if it ends before that, or takes too long."""
        exited = asyncio.create_task(self.exited())
        try:
            async with asyncio.timeout(START_SECONDS), HTTPClient(self.url) as client:
                while not await client.healthy():
                    if exited.done():
                        raise StartError(f"the {self.name} server did not start: {self._last_words()}")
                    await asyncio.sleep(0.2)
        except TimeoutError as error:
            raise StartError(f"the {self.name} server was not ready within {START_SECONDS:g} s") from error
        finally:
            exited.cancel()
        self.ready.set()

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL for what has not ended in time."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM, whole_group=False)
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        self._signal(signal.SIGKILL)
        await self._process.wait()

    def _signal(self, number: signal.Signals, whole_group: bool = True) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            (os.killpg if whole_group else os.kill)(self._process.pid, number)

    @property
    def log(self) -> str:
        """Where its output is, for a person."""
        return "above" if self._log_file is None else os.path.relpath(self._log_file)

    def _last_words(self) -> str:
        if self._log_file is None:
            return "its output above says why"
        lines = self._log_file.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        return lines[-1].removeprefix("error: ")


class Supervisor:
    """Owns the servers and one task for each, which starts it again when it dies."""

    def __init__(self, servers: list[ServerProcess], report: Callable[[str], None] = log.info) -> None:
        self.servers = servers
        self._report = report
        self._keepers: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All servers ready inside, none left outside. Raises StartError if one does not come up at first."""
        try:
            for server in self.servers:
                self._report(f"starting the {server.name} server at {server.url}")
                await server.start()
            await self._all_ready()
            self._keepers = [asyncio.create_task(self._keep(server)) for server in self.servers]
            yield
        finally:
            for keeper in self._keepers:
                keeper.cancel()
            await asyncio.gather(*self._keepers, return_exceptions=True)
            await asyncio.gather(*(server.stop() for server in self.servers))

    async def _all_ready(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for server in self.servers:
                    group.create_task(self._first_start(server))
        except* StartError as errors:
            raise errors.exceptions[0] from None

    async def _first_start(self, server: ServerProcess) -> None:
        await server.wait_ready()
        self._report(f"the {server.name} server is ready")

    async def _keep(self, server: ServerProcess) -> None:
        pause = 1.0
        while True:
            code = await server.exited()
            log.warning("the %s server ended with code %d; it is started again in %g s", server.name, code, pause)
            await asyncio.sleep(pause)
            await server.start()
            try:
                await server.wait_ready()
                pause = 1.0
            except StartError as error:
                log.warning("%s", error.message)
                pause = min(2 * pause, LONGEST_PAUSE)
