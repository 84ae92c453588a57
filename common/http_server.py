"""Makes, starts, drains and stops an HTTP server."""

import asyncio
import logging
import os
import signal
import socket
import weakref
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from aiohttp import WSCloseCode, web
from prometheus_client import CollectorRegistry

from common.config_values import ServerConfig
from common.errors import NotFoundError, RequestError, StartError
from common.http import auth as access
from common.http import middleware
from common.http.first_completed import first_completed
from common.http.in_flight import CANCEL_SECONDS, IN_FLIGHT, InFlight
from common.http.messages import BODY_LIMIT, WEBSOCKETS, error_object, reply
from common.http.metrics import HttpMetrics, metrics_page
from common.http.patience import CALL_ROUTE
from common.protocol import codec
from common.protocol.openapi import Schema

log = logging.getLogger(__name__)

FATAL = web.AppKey("FATAL", asyncio.Future[None])
"""A component of the app that cannot go on sets its error here; the server then stops with that error."""
LIVENESS = web.AppKey[Callable[[], None]]("LIVENESS")
"""Raises EngineError when the server can only be helped by a new start; GET /health is 503 then."""
WORKS_ON = web.AppKey[Callable[[web.Request], Awaitable[bool]]]("WORKS_ON")
"""Whether the call is worked on that a request of CALL_ROUTE names, where other servers do the work; else every call in
flight is."""
KEEPALIVE_SECONDS = 75.0
"""How long a connection may be idle between requests, or take to send the head of one."""

BACKLOG = 512
"""Connections that wait for the event loop to take them. Of one more the system drops the first packet, which is sent
again after a second: many clients at once would then wait for that, and not for an answer or a refusal."""
LINGER_SECONDS = 2.0
"""How long the rest of a refused body is still read, so that its sender can read the reply."""


def make_app(
    config: ServerConfig | None = None,
    registry: CollectorRegistry | None = None,
    public: Collection[str] = (),
    metrics: Callable[[web.Request], Awaitable[web.Response]] | None = None,
) -> web.Application:
    """An application with GET /health, GET /metrics, API keys, a guard against foreign web pages, CORS, request logs
    and OpenAI's error objects.

    Its metrics are kept on `registry`. `public`: routes that are answered without a key, beside /health and /ready.
    `metrics` answers GET /metrics in place of a page of `registry`.
    """
    config, registry = config or ServerConfig(), registry or CollectorRegistry()
    in_flight = InFlight()
    middlewares = [middleware.observe(HttpMetrics(registry, lambda: len(in_flight))), middleware.errors]
    middlewares.append(access.guard_against_pages(config.host, config.cors_origins))
    if config.cors_origins:
        middlewares.append(access.cors(config.cors_origins))
    middlewares.append(middleware.stopping)
    if config.api_keys:
        middlewares.append(access.authenticate(config.api_keys, public))
    app = web.Application(middlewares=middlewares, client_max_size=BODY_LIMIT)
    app.on_response_prepare.append(access.response_headers(config.cors_origins))
    app[IN_FLIGHT], app[WEBSOCKETS] = in_flight, weakref.WeakSet()
    app.router.add_get("/health", _health)
    app.router.add_get("/metrics", metrics or metrics_page(registry))
    app.router.add_get(CALL_ROUTE, _call)
    return app


def add_document(app: web.Application, written: Schema) -> None:
    """Adds GET /openapi.json."""

    async def document(request: web.Request) -> web.Response:
        return reply(request, written)

    app.router.add_get("/openapi.json", document)


async def _health(request: web.Request) -> web.Response:
    if LIVENESS in request.app:
        request.app[LIVENESS]()
    return reply(request, {"status": "ok"})


async def _call(request: web.Request) -> web.Response:
    """Whether the server works on one of the calls that it was sent: a client asks when the reply is late."""
    works_on = request.app.get(WORKS_ON)
    own = request.app[IN_FLIGHT].works_on
    if not (own(request.match_info["id"]) if works_on is None else await works_on(request)):
        raise NotFoundError("no such call is in flight")
    return reply(request, {"status": "working"})


class ClientConnection(web.RequestHandler):
    """One client's connection. Bytes that are not HTTP get OpenAI's error object too."""

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if status >= 500 or request.writer.output_size:
            return super().handle_error(request, status, exc, message)
        body = codec.encode(error_object(RequestError("this is not valid HTTP")))
        response = web.Response(status=status, body=body, content_type=codec.JSON)
        response.force_close()
        return response


class HTTPServer:
    """Serves one application on one address. After `start`, `port` is the real port; pair it with `stop`.

    Cancels a handler when its client disconnects.
    """

    def __init__(
        self, app: web.Application, host: str, port: int, name: str = "server", drain_seconds: float = 10.0
    ) -> None:
        self.host, self.port, self.name, self.drain_seconds = host, port, name, drain_seconds
        self._app = app
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=CANCEL_SECONDS)
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises StartError if the address cannot be used, or what the application's startup raises."""
        # Bind first: the application may need half a minute to start, and a used port should fail before that.
        listener = await listen(self.host, self.port, self.name)
        self.port = listener.getsockname()[1]
        loop = asyncio.get_running_loop()
        self._app[FATAL] = loop.create_future()
        try:
            await self._runner.setup()
        except BaseException:
            listener.close()
            await self._runner.cleanup()
            raise
        assert self._runner.server is not None
        self._runner.server.request_handler = middleware.with_refused_expectations(self._runner.server.request_handler)
        self._listener = await loop.create_server(self._connection, sock=listener, backlog=BACKLOG)

    def _connection(self) -> ClientConnection:
        assert self._runner.server is not None
        return ClientConnection(
            self._runner.server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEPALIVE_SECONDS,
            access_log=None,  # type: ignore[arg-type]  # None is how it is switched off
            lingering_time=LINGER_SECONDS,
            auto_decompress=False,  # `messages.read` checks the declared size first
        )

    async def drain(self) -> None:
        """Accepts nothing new, and returns when all requests are answered or after `drain_seconds`.

        WebSockets count as requests until their handlers end.
        """
        self._app[IN_FLIGHT].draining.set()
        if self._listener is not None:
            self._listener.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.drain_seconds):
                await self._app[IN_FLIGHT].wait_idle()

    async def stop(self) -> None:
        """Ends all running requests at once: WebSockets are closed with 1001, requests get a 503."""
        self._app[IN_FLIGHT].draining.set()
        if self._listener is not None:
            self._listener.close()
        sockets = [ws.close(code=WSCloseCode.GOING_AWAY, message=b"stopping") for ws in self._app[WEBSOCKETS]]
        await asyncio.gather(*sockets)
        await self._app[IN_FLIGHT].cancel_all()
        await self._runner.cleanup()

    async def run(self) -> None:
        """Serves until SIGINT or SIGTERM, then drains until a second signal. Raises the error set on FATAL."""
        await self.start()
        loop, signals = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
        signalled, signalled_twice = asyncio.Event(), asyncio.Event()
        for number in signals:
            loop.add_signal_handler(number, lambda: (signalled_twice if signalled.is_set() else signalled).set())
        try:
            log.info("%s listens on http://%s:%d", self.name, self.host, self.port)
            await first_completed(signalled.wait(), _failed(self._app[FATAL]))
            log.info("the %s stops; a second signal ends what it is working on", self.name)
            await first_completed(self.drain(), signalled_twice.wait())
        finally:
            await self.stop()
            for number in signals:
                loop.remove_signal_handler(number)


async def listen(host: str, port: int, name: str) -> socket.socket:
    """A socket that listens on the address; raises StartError, for a server of this name, if it cannot be used."""
    try:
        addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = min(addresses, key=lambda info: info[0])  # IPv4 before IPv6
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise StartError(
            f"the {name} cannot listen on {host}:{port} ({reason}): choose another with "
            f"--set {name.partition(' ')[0]}.server.port=PORT"
        ) from error


async def _failed(fatal: asyncio.Future[None]) -> None:
    await asyncio.wait([fatal])  # awaiting the future itself would cancel it when this task is cancelled
    fatal.result()


async def serve(app: web.Application, config: ServerConfig, name: str) -> None:
    """Runs a server on the address of `config`; see `HTTPServer.run`."""
    await HTTPServer(app, config.host, config.port, name, config.drain_seconds).run()
