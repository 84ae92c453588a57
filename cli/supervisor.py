"""Starts servers as processes of their own, restarts one that dies, and stops all of them."""

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
"""Before SIGKILL: more than a server's `drain_seconds` and the time its engine takes to end."""
LONGEST_PAUSE = 30.0
"""Seconds before a server that fails to start is started again."""


class ServerProcess:
    """One server program (a file or a module) with all processes that it starts; `stop` ends all of them."""

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
        """Waits until the server ends by itself; returns its exit code (negative: the signal)."""
        assert self._process is not None
        code = await self._process.wait()
        self.ready.clear()
        self._signal(signal.SIGKILL)  # processes that it may have left behind
        return code

    async def wait_ready(self) -> None:
        """Waits until the server is ready; raises StartError if it ends before, or after START_SECONDS."""
        exited = asyncio.create_task(self.exited())
        try:
            async with asyncio.timeout(START_SECONDS), HTTPClient(self.url) as client:
                while not await client.healthy():
                    if exited.done():
                        raise StartError(f"the {self.name} server did not start: {self.last_line()}")
                    await asyncio.sleep(0.2)
        except TimeoutError as error:
            why = f"was not ready within {START_SECONDS:g} s; its output: {self.log}"
            raise StartError(f"the {self.name} server {why}") from error
        finally:
            exited.cancel()
        self.ready.set()

    async def stop(self) -> None:
        """SIGTERM to the server; after its end, or STOP_SECONDS, SIGKILL to all its processes."""
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
        """Where its output is: 'above' on this terminal, or the path of its log file."""
        return "above" if self._log_file is None else os.path.relpath(self._log_file)

    def last_line(self) -> str:
        """The last line of its log file, for an error message."""
        if self._log_file is None:
            return "its output above says why"
        lines = self._log_file.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
        return lines[-1].removeprefix("error: ")


class Supervisor:
    """Owns the servers and one task per server that restarts it when it dies."""

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
            self._restarters = [asyncio.create_task(self._restart(server)) for server in self.servers]
            yield
        finally:
            for task in self._restarters:
                task.cancel()
            await asyncio.gather(*self._restarters, return_exceptions=True)
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

    async def _restart(self, server: ServerProcess) -> None:
        pause = 1.0
        while True:
            code = await server.exited()
            log.warning("the %s server ended with code %d; restarting it in %g s", server.name, code, pause)
            await asyncio.sleep(pause)
            await server.start()
            try:
                await server.wait_ready()
                pause = 1.0
            except StartError as error:
                log.warning("%s", error.message)
                pause = min(2 * pause, LONGEST_PAUSE)
