"""Small replicas with the toy model on real ports behind a real front: each can be killed, stopped, drained, filled."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from aiohttp import web
from multidict import CIMultiDictProxy

from benchmarks.fake_cloud import FakeCloud
from cloud.replicas.actor import ReplicaSpec
from cloud.replicas.block_changes import BlockChange, FollowedKVCache
from cloud.replicas.fleet import Fleet, FleetTiming
from cloud.replicas.front import build_app
from cloud.replicas.replica import Replica, ReplicaAddress
from common.config_cloud import CloudConfig
from common.config_values import Secret, ServerConfig
from common.errors import EngineError, FrameworkError, StartError
from common.http.auth import authenticate
from common.http.messages import error_object, reply, stream, websocket
from common.http_server import HTTPServer
from common.protocol import codec
from common.protocol.stream_frames import ErrorDetail, ErrorFrame, StartFrame

QUICK = FleetTiming(probe=0.02, patience=20.0, silences=3, first_pause=0.02, longest_pause=0.1)
"""So patient that no slow machine makes a replica look hung."""


class FakeReplica(FakeCloud):
    """A replica's process and its server in one: `kill` breaks all its connections, and it starts again."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.starts_with = 0
        """How often it has been started."""
        self.wrong = ""
        """Why the next start fails after its port is open."""
        self.spec = ReplicaSpec("toy", {}, CloudConfig(), "INFO", False)
        self.cache = FollowedKVCache()
        self.begun, self.left, self.go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
        """Of requests that wait: one has begun; its client has left; it may end."""
        self.silent = False
        self.keys: list[Secret] = []
        """Taken by what it starts next; none: it is open to all."""
        self.lost_engine = False
        """Its server answers, and refuses all work."""
        self.dies = False
        """Whatever work it gets ends it."""
        self.sent: list[CIMultiDictProxy[str]] = []
        """The headers of requests to /v1."""
        self._server: HTTPServer | None = None
        self._ended = asyncio.Event()

    def app(self) -> web.Application:
        app = super().app()
        if self.keys:
            app.middlewares.append(authenticate(self.keys))
        app.router.add_get("/stats", self._stats)
        app.router.add_post("/v1/completions", self._completion)
        app.router.add_post("/v1/chat/completions", self._events)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_get("/split", self._split)
        return app

    async def start(self) -> ReplicaAddress:
        self.starts_with += 1
        self._ended.clear()
        self._server = HTTPServer(self.app(), "127.0.0.1", 0, drain_seconds=1)
        await self._server.start()
        return ReplicaAddress(f"http://127.0.0.1:{self._server.port}", 4242)

    async def ended(self) -> None:
        if self.wrong:
            await self.stop()
            raise StartError(self.wrong)
        await self._ended.wait()

    async def changes(self) -> AsyncGenerator[list[BlockChange], None]:
        async for changes in self.cache.changes():
            yield changes

    async def drain(self) -> None:
        assert self._server is not None
        await self._server.drain()

    async def stop(self) -> None:
        self._ended.set()
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop()

    async def kill(self) -> None:
        assert self._server is not None and self._server._listener is not None
        self._server._listener.close()
        runner = self._server._runner.server
        for connection in runner.connections if runner else []:
            if connection.transport is not None:
                connection.transport.abort()
        self.silent = False
        await self.stop()

    async def _ready(self, request: web.Request) -> web.Response:
        """Ready even when it is full, or its engine lost: what it refuses is seen before it says so itself."""
        if self.silent:
            await asyncio.sleep(60)
        if not self.ready:
            raise EngineError("it loads")
        return reply(request, {"status": "ready"})

    async def _answer(self, socket: web.WebSocketResponse, start: StartFrame) -> StartFrame | None:
        try:
            self._refuse()
            await self._die()
        except FrameworkError as error:
            detail = msgspec.convert(error_object(error)["error"], ErrorDetail)
            await socket.send_bytes(codec.encode(ErrorFrame(error=detail), codec.MSGPACK))
            return None
        return await super()._answer(socket, start)

    def _refuse(self) -> None:
        super()._refuse()
        if self.lost_engine:
            raise EngineError("the engine has died")

    async def _die(self) -> None:
        if self.dies:
            await asyncio.shield(self.kill())  # which cancels this request

    async def _stats(self, request: web.Request) -> web.Response:
        return reply(request, {"sessions": 2, "kv_cache_usage": 0.5, "model": "toy", "kv_cache": {"blocks": 3}})

    async def _completion(self, request: web.Request) -> web.Response:
        """Waits until it may go on."""
        self._refuse()
        await self._die()
        self.sent.append(request.headers)
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        return reply(request, {"by": self.name})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """One event, and the last one when it may go on."""

        async def events() -> AsyncGenerator[bytes, None]:
            try:
                yield f"data: {self.name}\n\n".encode()
                self.begun.set()
                await self.go_on.wait()
                yield b"data: [DONE]\n\n"
            finally:
                self.left.set()

        return await stream(request, events())

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        return reply(request, {"tokens": [ord(letter) for letter in body["prompt"]]})

    async def _split(self, request: web.Request) -> web.WebSocketResponse:
        socket = await websocket(request)
        async for message in socket:
            await socket.send_bytes(self.name.encode() + message.data)
        return socket


class RunningFront:
    """A front and its fake replicas."""

    def __init__(self, url: str, server: HTTPServer, fleet: Fleet, fakes: list[FakeReplica]) -> None:
        self.url, self.server, self.fleet, self.fakes = url, server, fleet, fakes
        self.http = aiohttp.ClientSession(url)

    def replica(self, fake: FakeReplica) -> Replica:
        return next(one for one in self.fleet.replicas if one.process is fake)

    async def until_ready(self, count: int | None = None) -> None:
        """Waits until this many replicas (None: all) take requests."""
        async with asyncio.timeout(20):
            while sum(one.usable for one in self.fleet.replicas) < (len(self.fakes) if count is None else count):
                await asyncio.sleep(0.01)


@asynccontextmanager
async def front(count: int = 2, timing: FleetTiming = QUICK, **server: object) -> AsyncIterator[RunningFront]:
    """A front that is ready; `server` are keys of ServerConfig. The replicas take its API keys, too."""
    fakes = [FakeReplica(str(number)) for number in range(count)]
    fleet = Fleet({fake.name: fake for fake in fakes}, timing)
    config = ServerConfig(host="127.0.0.1", **server)  # type: ignore[arg-type]
    for fake in fakes:
        fake.keys = config.api_keys
    http = HTTPServer(build_app(fleet, config), config.host, 0, "front", drain_seconds=0)
    await http.start()
    running = RunningFront(f"http://127.0.0.1:{http.port}", http, fleet, fakes)
    try:
        await running.until_ready()
        yield running
    finally:
        await running.http.close()
        await http.stop()
