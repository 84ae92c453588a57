"""Runs a server program as a process of its own, with all that it starts and leaves behind, until it has ended."""

import asyncio
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from cli.server_log import ServerLog
from common.config_schema import HttpClientConfig
from common.errors import EndpointError, RequestError, StartError
from common.files.installation import PROJECT, module_environment
from common.http.client import HTTPClient
from common.http.retry import NotListening
from common.http_server import listen

log = logging.getLogger(__name__)

EDGE, CLOUD = "edgecloud.edge", "edgecloud.cloud"
"""The programs of the servers, started as processes of their own: no import."""
REPORT_SECONDS = 10.0
"""Seconds between two progress lines of a server that starts."""
STOP_SECONDS = 30.0
"""Before SIGKILL: more than a server's `drain_seconds` and the time its engine takes to end."""
LOADING_STOP_SECONDS = 3.0
"""The same for a server that is not ready: it has nothing to finish, and one that loads an engine hears no signal."""
HEALTH_SECONDS = 10.0
"""Seconds between two looks at a running server, and for its reply."""
HUNG_CHECKS = 6
"""After this many looks in a row without a reply a server hangs. Counted, so that a suspended machine kills nothing."""
TIDY_SECONDS = 2
"""For what is left of a server that has ended: Python's resource tracker removes its shared memory, and then ends."""
WATCH = f'read group; read end; kill -s KILL "$group"; sleep {TIDY_SECONDS}; kill -s KILL -- "-$group"; rm -rf -- "$0"'
"""For a shell: ends the process group that stdin names, once that is closed, and removes the folder `$0`: `_clear`."""


class ServerProcess:
    """One server program (a file or a module) with all processes that it starts; `stop` ends all of them.

    So does the end of this process, whatever ends it, and whether they run or stand still: a shell waits for that.

    It has a process group of its own, and this process's session. Linux shares the processors out among sessions
    (autogroups) first: of two servers in sessions of their own, the edge's event loop stood still for up to 0.16 s
    at a time beside the cloud, and streamed tokens came all at once.
    """

    CLIENT: type[HTTPClient] = HTTPClient
    """What asks it whether it is ready."""

    def __init__(
        self,
        name: str,
        script: str,
        url: str,
        flags: list[str],
        log_file: Path | None = None,
        cores: Collection[int] = (),
    ) -> None:
        """`cores`: those that it may run on; none: all of this process's."""
        self.name = name
        self.url = url
        self.ready = asyncio.Event()
        program = [str(PROJECT / script)] if script.endswith(".py") else ["-P", "-m", script]
        self._command = [sys.executable, *program, *flags]
        self.log = ServerLog(log_file)
        self._cores = cores
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.subprocess.Process | None = None
        """The shell, until the server has ended."""
        self._folder = ""
        """For temporary files, of which a server that is killed removes none."""

    async def start(self) -> None:
        """Raises StartError if another program has the port: its replies would pass for this server's."""
        address = urlsplit(self.url)
        (await listen(address.hostname or "", address.port or 0, f"{self.name} server")).close()
        self._folder = tempfile.mkdtemp(prefix=f"{self.name}-")
        self._watch = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", WATCH, self._folder, stdin=PIPE, stderr=DEVNULL, start_new_session=True
        )
        output = self.log.opened()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
                env=self._environment(),
            )
        finally:
            if output:
                output.close()
        if self._cores:
            os.sched_setaffinity(self._process.pid, self._cores)  # before it has threads, which inherit this
        assert self._watch.stdin is not None
        self._watch.stdin.write(f"{self._process.pid}\n".encode())

    async def exited(self) -> int:
        """Waits until the server ends by itself; returns its exit code (negative: the signal)."""
        assert self._process is not None
        code = await self._process.wait()
        self.ready.clear()
        await self._clear()  # it may have left processes behind
        return code

    async def wait_ready(self, report: Callable[[str], None] = log.info) -> None:
        """Waits until the server is ready, however long it loads; raises StartError if it ends before.

        `report` gets a line every REPORT_SECONDS: loading a large model, or downloading it, takes minutes.
        """
        exited, began = asyncio.create_task(self.exited()), time.monotonic()
        reported = began
        try:
            async with self.CLIENT(self.url) as client:
                while (problem := await _not_ready(client)) is not None:
                    if exited.done():
                        killed = exited.result() < 0  # then its log does not say why
                        reason = f"it ended with {ending(exited.result())}" if killed else self.log.last_error()
                        raise StartError(f"the {self.name} server did not start: {reason}")
                    if time.monotonic() - reported >= REPORT_SECONDS:
                        reported = time.monotonic()
                        report(f"the {self.name} server is not ready after {reported - began:.0f} s: {problem}")
                    await asyncio.sleep(0.2)
        finally:
            exited.cancel()
        self.ready.set()

    async def kill_if_hung(self) -> None:
        """Kills the server once it answers nothing; then it has `exited`. A busy one answers, if only GET /health."""
        silent = 0
        async with HTTPClient(self.url, HttpClientConfig(timeout=HEALTH_SECONDS, optimized=False)) as client:
            while silent < HUNG_CHECKS:
                await asyncio.sleep(HEALTH_SECONDS)
                silent = 0 if await _answers(client) else silent + 1
        log.warning("the %s server answers nothing, and is killed", self.name)
        self._signal(signal.SIGKILL, whole_group=False)

    async def stop(self) -> None:
        """SIGTERM to the server; after its end, or some seconds, SIGKILL to all its processes."""
        if self._process is None:
            return
        log.info("stopping the %s server", self.name)
        self._signal(signal.SIGTERM, whole_group=False)
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS if self.ready.is_set() else LOADING_STOP_SECONDS):
                await self._process.wait()
        await self._clear()
        await self._process.wait()

    async def _clear(self) -> None:
        self._signal(signal.SIGKILL, whole_group=False)
        with suppress(TimeoutError):
            async with asyncio.timeout(TIDY_SECONDS):
                while self._signal(0):
                    await asyncio.sleep(0.05)
        self._signal(signal.SIGKILL)
        if self._watch is not None:
            watch, self._watch = self._watch, None
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
            watch.kill()
            await watch.wait()

    def _environment(self) -> dict[str, str]:
        """Its temporary files are in its folder, but for compiled kernels, which a later server needs too."""
        environment = module_environment() | {"TMPDIR": self._folder}
        # Not the first variable: torch sets it anew, and where the first one moves, setproctitle does nothing.
        kernels = os.path.join(tempfile.gettempdir(), f"torchinductor_{os.getuid()}")
        return environment | {"TORCHINDUCTOR_CACHE_DIR": environment.get("TORCHINDUCTOR_CACHE_DIR", kernels)}

    def _signal(self, number: int, whole_group: bool = True) -> bool:
        """Whether there was a process to send it to; never one that has the id of a server that has ended."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number) if whole_group else self._process.send_signal(number)
            return True
        return False


def ending(code: int) -> str:
    """An exit code in words; one of them needs an explanation that the server cannot give itself."""
    if code != -signal.SIGILL:
        return f"code {code}"
    return f"code {code} (illegal instruction: llama.cpp does not fit this processor, docs/DEVICES.md#processors)"


async def _not_ready(client: HTTPClient) -> str | None:
    """Why the server is not ready; None if it is."""
    try:
        await client.check_ready()
    except NotListening:
        return "it loads"
    except EndpointError as error:
        return error.message.removeprefix(f"{client.base_url} answered 503: ")
    return None


async def _answers(client: HTTPClient) -> bool:
    try:
        await client.get("/health", dict)
    except EndpointError:
        return False
    except RequestError:
        pass  # a refusal is an answer
    return True
