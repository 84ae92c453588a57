"""Reads request bodies and writes replies, event streams, WebSockets and errors for a handler."""

import asyncio
import logging
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web

from common.errors import FrameworkError, StoppingError
from common.http.compression import decompressed
from common.http.in_flight import IN_FLIGHT
from common.protocol import codec

log = logging.getLogger(__name__)
T = TypeVar("T")

REQUEST_ID = web.RequestKey("REQUEST_ID", str)
"""The `X-Request-Id` of the request, or a generated one; returned, logged and sent on to other servers."""
TENANT = web.RequestKey("TENANT", str)
"""A name for the request's API key that does not reveal it; empty when the server has no keys."""
ERROR_OBJECT: web.RequestKey[Callable[[FrameworkError], dict[str, Any]]] = web.RequestKey("ERROR_OBJECT")
"""How the request's route writes errors, where it does not as `error_object` does."""
WEBSOCKETS = web.AppKey("WEBSOCKETS", weakref.WeakSet[web.WebSocketResponse])
"""The open WebSockets, which the server closes when it stops."""
BODY_LIMIT = 4 * 2**20
"""Bytes of a request body, before and after decompression."""
BODY_SECONDS = 30.0
"""How long a request body may take to arrive."""
KEEPALIVE = b": working\n\n"
"""A comment among server-sent events, which clients skip."""
KEEPALIVE_SECONDS = 5.0
"""How long an event stream is silent before it gets one: clients and proxies drop idle connections."""
SEND_SECONDS = 30.0
"""How long an event of a stream may wait for a client that does not read; after that the client counts as left."""
HEARTBEAT_SECONDS = 20.0
"""Interval of pings to a WebSocket's peer, which has half of it to answer."""


UNKNOWN_ROUTE = "other"


@dataclass(slots=True)
class Exchange:
    """The progress of one request: bytes of bodies, start and first byte (`time.perf_counter`), a failed stream."""

    bytes_in: int = 0
    bytes_out: int = 0
    began: float = field(default_factory=time.perf_counter)
    first_byte: float | None = None
    failed: bool = False
    complete: bool = False
    """Whether all events of a stream were sent: a client that leaves now has its answer."""
    ended: float | None = None
    """When the last answer on a connection that is kept open ended; None: the request ends with its handler."""

    @property
    def seconds(self) -> float:
        """From the start until the end, or until now."""
        return (self.ended or time.perf_counter()) - self.began

    def begin(self) -> None:
        """Another answer begins on the same connection: times are its own."""
        self.began, self.first_byte, self.ended = time.perf_counter(), None, None

    def end(self) -> None:
        self.ended = time.perf_counter()

    def record_sent(self, size: int) -> None:
        self.bytes_out += size
        if self.first_byte is None:
            self.first_byte = time.perf_counter()


EXCHANGE = web.RequestKey("EXCHANGE", Exchange)


async def read(request: web.Request, type_: type[T]) -> T:
    """The request's body decoded as `type_`, a struct or a dict of plain JSON values, without fields that are null;
    raises as `read_body` does, and RequestError."""
    body = await read_body(request)
    encoded = _encoding(request) == "zstd"
    return codec.decode_request(decompressed(body, BODY_LIMIT) if encoded else body, type_, request.content_type)


async def read_body(request: web.Request) -> bytes:
    """The request's body as it was sent.

    Answers 413 for a body above BODY_LIMIT, 408 for one that takes longer than BODY_SECONDS, and 415 for any
    compression but zstd.
    """
    if _encoding(request) not in ("identity", "zstd"):
        raise web.HTTPUnsupportedMediaType(reason="of compressed bodies only zstd is accepted")
    if (request.content_length or 0) > BODY_LIMIT:
        raise web.HTTPRequestEntityTooLarge(BODY_LIMIT)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout from error
    request[EXCHANGE].bytes_in += len(body)
    return body


def _encoding(request: web.Request) -> str:
    return request.headers.get("Content-Encoding", "identity").lower()


def route_of(request: web.Request) -> str:
    """The registered pattern of the request's route, never the client's own path."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else UNKNOWN_ROUTE


def tenant_of(request: web.Request, name: str) -> str:
    """The tenant that `name` is among those of the request's API key: an edge shows one key for all its clients."""
    return request[TENANT] + name  # the first part has the same length for all keys


def reply(request: web.Request, value: object, status: int = 200) -> web.Response:
    """`value` as MessagePack if the client accepts or sent that, else as JSON."""
    accept = request.headers.get("Accept", "")
    content_type = codec.MSGPACK if codec.MSGPACK in (accept, request.content_type) else codec.JSON
    return web.Response(body=codec.encode(value, content_type), status=status, content_type=content_type)


async def stream(
    request: web.Request,
    events: AsyncGenerator[bytes, None],
    error_event: Callable[[FrameworkError], bytes] | None = None,
) -> web.StreamResponse:
    """Sends `events`, already encoded as server-sent events; a failure becomes an error event and ends the stream.

    While there is no event it sends comments. Closes `events` at once when the client disconnects, and when it has not
    read for SEND_SECONDS.
    """
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    exchange = request[EXCHANGE]
    async with aclosing(events), _kept_alive(response, exchange):
        try:
            async for event in events:
                try:
                    await sent(request, response.write(event))
                except asyncio.CancelledError as error:
                    await events.athrow(error)  # the generator knows who cancelled it
                    raise
                exchange.record_sent(len(event))
            exchange.complete = True
        except ConnectionError:
            raise  # the client disconnected: nobody can read an error event
        except (Exception, asyncio.CancelledError) as error:
            exchange.failed = True
            event = (error_event or _error_event)(client_error(request, error))
            await sent(request, response.write(event))
            exchange.record_sent(len(event))
    with suppress(ConnectionError):  # a client that has read the last event may leave
        await sent(request, response.write_eof())
    return response


def _error_event(error: FrameworkError) -> bytes:
    return b"data: " + codec.encode(error_object(error)) + b"\n\n"


async def sent(request: web.Request, writing: Awaitable[None]) -> None:
    """Waits until the client has room for what is written; breaks the connection of one that does not read."""
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await writing
    except TimeoutError as error:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionError(f"the client has not read for {SEND_SECONDS:g} s") from error


@asynccontextmanager
async def _kept_alive(response: web.StreamResponse, exchange: Exchange) -> AsyncIterator[None]:
    """Sends a comment whenever nothing was sent for KEEPALIVE_SECONDS, in a task of its own, until the block ends."""

    async def send() -> None:
        sent = exchange.bytes_out
        while True:
            await asyncio.sleep(KEEPALIVE_SECONDS)
            if exchange.bytes_out == sent:
                await response.write(KEEPALIVE)
            sent = exchange.bytes_out

    task = asyncio.create_task(send())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def websocket(request: web.Request, message_limit: int = BODY_LIMIT) -> web.WebSocketResponse:
    """Accepts the request's WebSocket; closed when the peer answers no ping, or (code 1001) when the server stops.

    A handler that can finish early watches `request.app[IN_FLIGHT].draining`. `message_limit` is in bytes.
    """
    socket = web.WebSocketResponse(
        protocols=(codec.SUBPROTOCOL,),
        max_msg_size=message_limit,
        compress=False,
        heartbeat=HEARTBEAT_SECONDS,
        timeout=2.0,
    )
    await socket.prepare(request)
    request.app[WEBSOCKETS].add(socket)
    return socket


def client_error(request: web.Request, error: BaseException) -> FrameworkError:
    """The error to send for a failure: a FrameworkError as it is; any other is logged and becomes an internal error.

    Raises a CancelledError again, unless the stopping server cancelled the request: that becomes a StoppingError.
    """
    if isinstance(error, asyncio.CancelledError):
        if not request.app[IN_FLIGHT].take_cancellation():
            raise error
        return StoppingError("the server has stopped before the answer was complete")
    if isinstance(error, FrameworkError):
        return error
    log.error("request %s failed", request[REQUEST_ID], exc_info=error)
    return FrameworkError("internal error; the server's log has the details")


def error_object(error: FrameworkError) -> dict[str, dict[str, str | None]]:
    """OpenAI's error object; what it quotes of the input may have lone surrogates, which become question marks."""
    message, param = (text.encode(errors="replace").decode() for text in (error.message, error.param or ""))
    return {"error": {"message": message, "type": error.type, "param": param or error.param, "code": error.code}}
