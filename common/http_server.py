"""What both servers share of HTTP: errors in OpenAI's shape, request ids, typed bodies, start and stop. No model."""

import asyncio
import logging
import os
import signal
import socket
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from aiohttp import web

from common import wire
from common.errors import FrameworkError, NotFoundError, RequestError, StartError
from common.request_id import current_request_id

log = logging.getLogger(__name__)
T = TypeVar("T")

REQUEST_ID = web.RequestKey("REQUEST_ID", str)
"""The id that a request came with or was given; in its response, in the log, and passed on."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
BODY_LIMIT = 4 * 2**20
BODY_SECONDS = 30.0
FATAL = web.AppKey("FATAL", asyncio.Future[None])
"""Failed by an owner in the app that cannot go on; the server then stops with that error."""


def make_app() -> web.Application:
    """An application that answers GET /health and turns every failure into OpenAI's error object."""
    app = web.Application(middlewares=[_request_ids, _errors], client_max_size=BODY_LIMIT)
    app.router.add_get("/health", _health)
    return app


async def read(request: web.Request, type_: type[T]) -> T:
    """The request's body as a struct; raises RequestError (408 for a body that does not arrive in time)."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout from error
    return wire.decode(body, type_, request.content_type)


def reply(request: web.Request, value: object, status: int = 200) -> web.Response:
    """`value` encoded as the client asks: MessagePack if it accepts or sent that, else JSON."""
    wanted = request.headers.get("Accept", "")
    content_type = wire.MSGPACK if wire.MSGPACK in (wanted, request.content_type) else wire.JSON
    return web.Response(body=wire.encode(value, content_type), status=status, content_type=content_type)


async def stream(request: web.Request, events: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    """Sends server-sent events as they come; a failure on the way is an error event, then the end.

    `events` are closed at once when the client leaves.
    """
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Request-Id": request[REQUEST_ID]}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    async with aclosing(events):
        try:
            async for event in events:
                await response.write(event)
        except ConnectionError:
            raise  # the client left: there is nobody to tell
        except Exception as error:
            await response.write(b"data: " + wire.encode(error_object(_told(request, error))) + b"\n\n")
    await response.write_eof()
    return response


def _told(request: web.Request, error: Exception) -> FrameworkError:
    """What the client is told of a failure: our own errors as they are, any other only in the log."""
    if isinstance(error, FrameworkError):
        return error
    log.error("request %s failed", request[REQUEST_ID], exc_info=error)
    return FrameworkError("internal error; the server's log has the details")


def error_object(error: FrameworkError) -> dict[str, dict[str, str | None]]:
    """OpenAI's error object."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


class HTTPServer:
    """Serves one application on one address; `start` and `stop` are paired, `port` is the real one after `start`.

    Handlers are cancelled when their client leaves.
    """

    def __init__(self, app: web.Application, host: str, port: int, name: str = "server") -> None:
        self.host, self.port, self.name = host, port, name
        self._app = app
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=5)

    async def start(self) -> None:
        """Raises StartError when the address cannot be used, or what the application's own start raises."""
        # The address first: an application may take half a minute to start, only to find its port in use.
        listener = await self._bind()
        self.port = listener.getsockname()[1]
        self._app[FATAL] = asyncio.get_running_loop().create_future()
        try:
            await self._runner.setup()
        except BaseException:
            listener.close()
            await self._runner.cleanup()
            raise
        await web.SockSite(self._runner, listener).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _bind(self) -> socket.socket:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            family, _, _, _, address = min(found, key=lambda info: info[0])  # IPv4 before IPv6
            return socket.create_server(address[:2], family=family)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            raise StartError(
                f"the {self.name} cannot listen on {self.host}:{self.port} ({reason}): choose another with --port"
            ) from error

    async def run(self) -> None:
        """Serves until SIGINT or SIGTERM; raises what an owner in the application failed with."""
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        await self.start()
        try:
            log.info("%s listens on http://%s:%d", self.name, self.host, self.port)
            self._app[FATAL].add_done_callback(lambda _: stopped.set())
            await stopped.wait()
            if self._app[FATAL].done():
                self._app[FATAL].result()
        finally:
            await self.stop()


async def serve(app: web.Application, host: str, port: int, name: str) -> None:
    await HTTPServer(app, host, port, name).run()


async def _health(request: web.Request) -> web.Response:
    return reply(request, {"status": "ok"})


@web.middleware
async def _request_ids(request: web.Request, handler: Handler) -> web.StreamResponse:
    given = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = given if 0 < len(given) <= 128 and given.isprintable() else uuid.uuid4().hex
    current_request_id.set(request[REQUEST_ID])
    response = await handler(request)
    if not response.prepared:
        response.headers["X-Request-Id"] = request[REQUEST_ID]
    return response


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except FrameworkError as error:
        failure, status = error, error.status
    except web.HTTPNotFound:
        failure, status = NotFoundError(f"no such route: {request.method} {request.path}"), 404
    except web.HTTPException as error:
        failure, status = RequestError(f"{error.reason}: {request.method} {request.path}"), error.status
    except Exception as error:
        failure, status = _told(request, error), 500
    log.info("request %s: %d %s", request[REQUEST_ID], status, failure.message)
    response = reply(request, error_object(failure), status)
    if status == 429:
        response.headers["Retry-After"] = "1"
    return response
