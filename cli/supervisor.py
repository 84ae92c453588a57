"""Starts servers as processes of their own, restarts one that dies, and stops all of them."""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

from common.errors import EndpointError, StartError
from common.http.client import HTTPClient

log = logging.getLogger(__name__)

PROJECT = Path(__file__).parents[1]
REPORT_SECONDS = 10.0
"""Seconds between two progress lines of a server that starts."""
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

    async def wait_ready(self, report: Callable[[str], None] = log.info) -> None:
        """Waits until the server is ready, however long it loads; raises StartError if it ends before.

        `report` gets a line every REPORT_SECONDS: loading a large model, or downloading it, takes minutes.
        """
        exited, began = asyncio.create_task(self.exited()), time.monotonic()
        reported = began
        try:
            async with HTTPClient(self.url) as client:
                while (problem := await _not_ready(client)) is not None:
                    if exited.done():
                        raise StartError(f"the {self.name} server did not start: {self.last_line()}")
                    if time.monotonic() - reported >= REPORT_SECONDS:
                        reported = time.monotonic()
                        report(f"the {self.name} server is not ready after {reported - began:.0f} s: {problem}")
                    await asyncio.sleep(0.2)
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


async def _not_ready(client: HTTPClient) -> str | None:
    """Why the server is not ready; None if it is."""
    try:
        await client.check_ready()
    except EndpointError as error:
        return error.message.removeprefix(f"{client.base_url} answered 503: ")
    return None


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
        await server.wait_ready(self._report)
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
