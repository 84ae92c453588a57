"""A real server program with a few routes, for tests that need a separate process.

    python -m tests.support.small_server OPTIONS

OPTIONS is one JSON object: `server` (keys of ServerConfig) and `limits` (module constants that override production).
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import msgspec
from aiohttp import web
from msgspec import Meta

from cli.args import run_program, set_up_logging
from common import http_server
from common.config_values import ServerConfig
from common.errors import OverloadedError
from common.http import messages
from common.http.in_flight import IN_FLIGHT
from common.http.messages import EXCHANGE, TENANT, read, reply, stream, websocket
from common.http_server import make_app, serve

ROOT = Path(__file__).parents[2]


class Body(msgspec.Struct, forbid_unknown_fields=True):
    text: str = ""
    count: Annotated[int, Meta(ge=0, le=2**31)] = 0
    share: float = 0.0
    ids: list[int] = []


def small_app(config: ServerConfig) -> web.Application:
    app = make_app(config)
    app.router.add_get("/ready", _ready)
    app.router.add_post("/typed", _typed)
    app.router.add_post("/untyped", _untyped)
    app.router.add_get("/wait/{seconds}", _wait)
    app.router.add_get("/events/{seconds}", _events)
    app.router.add_get("/socket", _socket)
    app.router.add_get("/overloaded", _overloaded)
    app.router.add_get("/broken", _broken)
    app.router.add_get("/tenant", _tenant)
    return app


async def _ready(request: web.Request) -> web.Response:
    return reply(request, {"status": "ready"})


async def _typed(request: web.Request) -> web.Response:
    return reply(request, await read(request, Body))


async def _untyped(request: web.Request) -> web.Response:
    return reply(request, {"keys": len(await read(request, dict[str, Any]))})


async def _wait(request: web.Request) -> web.Response:
    print("waiting", flush=True)
    await asyncio.sleep(float(request.match_info["seconds"]))
    return reply(request, {"waited": True})


async def _events(request: web.Request) -> web.StreamResponse:
    async def events() -> AsyncGenerator[bytes, None]:
        yield b"data: first\n\n"
        await asyncio.sleep(float(request.match_info["seconds"]))
        yield b"data: [DONE]\n\n"

    return await stream(request, events())


async def _socket(request: web.Request) -> web.WebSocketResponse:
    """Echoes binary messages; with the query `polite` it closes itself when the server drains."""
    socket = await websocket(request)
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(_end_when_draining(request, socket)) if "polite" in request.query else None
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                request[EXCHANGE].bytes_in += len(message.data)
                await socket.send_bytes(message.data)
        if watch:
            watch.cancel()
    return socket


async def _end_when_draining(request: web.Request, socket: web.WebSocketResponse) -> None:
    await request.app[IN_FLIGHT].draining.wait()
    await socket.close(code=aiohttp.WSCloseCode.GOING_AWAY)


async def _overloaded(request: web.Request) -> web.Response:
    raise OverloadedError("no room", retry_after=7)


async def _broken(request: web.Request) -> web.Response:
    raise ZeroDivisionError("a fault of our own")


async def _tenant(request: web.Request) -> web.Response:
    return reply(request, {"tenant": request[TENANT]})


async def main() -> None:
    options = json.loads(sys.argv[1])
    for module in (messages, http_server):
        for name, value in options.get("limits", {}).items():
            if hasattr(module, name):
                setattr(module, name, value)
    set_up_logging("INFO")
    config = msgspec.convert({"host": "127.0.0.1", **options["server"]}, ServerConfig, dec_hook=lambda t, v: t(v))
    await serve(small_app(config), config, "small server")


class SmallServer:
    """The program in its own process: tests send it signals and read its log and memory."""

    def __init__(self, server: dict[str, Any], limits: dict[str, Any]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a full pipe that nobody reads would block the server
        options = json.dumps({"server": {"port": self.port, **server}, "limits": limits})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.small_server", options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.url = f"http://127.0.0.1:{self.port}"

    async def up(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            assert self.process.poll() is None, self.log()
            await asyncio.sleep(0.02)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    async def ended(self) -> tuple[int, str]:
        """Exit code and log, after the process has ended by itself."""
        await asyncio.to_thread(self.process.wait, timeout=60)
        return self.process.returncode, self.log()

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._log.close()

    @property
    def memory(self) -> int:
        """Resident bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def peak_memory(self) -> int:
        """The most resident bytes since the start."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@contextlib.contextmanager
def _process(server: dict[str, Any], limits: dict[str, Any]) -> Iterator[SmallServer]:
    program = SmallServer(server, limits)
    try:
        yield program
    finally:
        program.close()


@contextlib.asynccontextmanager
async def small_server(limits: dict[str, Any] | None = None, **server: Any) -> AsyncIterator[SmallServer]:
    """A running server; `server` are keys of ServerConfig, `limits` module constants by name."""
    with _process(server, limits or {}) as program:
        await program.up()
        yield program


if __name__ == "__main__":
    sys.exit(run_program(main()))
