"""What a handler uses of HTTP: typed bodies in; replies, event streams, sockets and errors out. Knows no routes."""

import asyncio
import logging
import time
import weakref
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

import zstandard
from aiohttp import web

from common.errors import FrameworkError, RequestError, StoppingError
from common.http.in_flight import IN_FLIGHT
from common.protocol import codec

log = logging.getLogger(__name__)
T = TypeVar("T")

REQUEST_ID = web.RequestKey("REQUEST_ID", str)
"""The id that a request came with or was given; in its response, in the log, and passed on."""
TENANT = web.RequestKey("TENANT", str)
"""A name for the request's API key that does not give it away; empty when the server has no keys."""
WEBSOCKETS = web.AppKey("WEBSOCKETS", weakref.WeakSet[web.WebSocketResponse])
"""The open sockets, for the server to close when it stops."""
BODY_LIMIT = 4 * 2**20
BODY_SECONDS = 30.0
HEARTBEAT_SECONDS = 20.0
"""How often a socket's peer is asked whether it is still there; it has half of that to answer."""


@dataclass(slots=True)
class Exchange:
    """What has moved for one request so far: bytes of bodies, when it began and first answered, a failed stream."""

    bytes_in: int = 0
    bytes_out: int = 0
    began: float = field(default_factory=time.perf_counter)
    first_byte: float | None = None
    failed: bool = False

    def sent(self, size: int) -> None:
        self.bytes_out += size
        if self.first_byte is None:
            self.first_byte = time.perf_counter()


EXCHANGE = web.RequestKey("EXCHANGE", Exchange)


async def read(request: web.Request, type_: type[T]) -> T:
    """The request's body as a struct (or a dict of plain JSON values); raises RequestError.

    413 for a body above BODY_LIMIT, 408 for one that does not arrive in time, 415 for one compressed otherwise than by
    zstd with its size declared: a few bytes could become gigabytes.
    """
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "zstd"):
        raise web.HTTPUnsupportedMediaType(reason="of compressed bodies only zstd is accepted")
    if (request.content_length or 0) > BODY_LIMIT:
        raise web.HTTPRequestEntityTooLarge(BODY_LIMIT)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout from error
    request[EXCHANGE].bytes_in += len(body)
    return codec.decode(_decompressed(body) if encoding == "zstd" else body, type_, request.content_type)


def _decompressed(body: bytes) -> bytes:
    """A zstd frame's content, which is never longer than it declares; 415 where it declares nothing, 413 too much."""
    try:
        size = zstandard.frame_content_size(body)
        if size < 0:
            raise web.HTTPUnsupportedMediaType(reason="a zstd body must declare its size")
        if size > BODY_LIMIT:
            raise web.HTTPRequestEntityTooLarge(BODY_LIMIT)
        return zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise RequestError("the body is not the zstd that it says it is") from error


def reply(request: web.Request, value: object, status: int = 200) -> web.Response:
    """`value` encoded as the client asks: MessagePack if it accepts or sent that, else JSON."""
    wanted = request.headers.get("Accept", "")
    content_type = codec.MSGPACK if codec.MSGPACK in (wanted, request.content_type) else codec.JSON
    return web.Response(body=codec.encode(value, content_type), status=status, content_type=content_type)


async def stream(request: web.Request, events: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    """Sends server-sent events as they come; a failure on the way is an error event, then the end.

    `events` are closed at once when the client leaves.
    """
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    exchange = request[EXCHANGE]
    async with aclosing(events):
        try:
            async for event in events:
                try:
                    await response.write(event)
                except asyncio.CancelledError as error:
                    await events.athrow(error)  # where they know whose cancellation it is
                    raise
                exchange.sent(len(event))
        except ConnectionError:
            raise  # the client left: there is nobody to tell
        except (Exception, asyncio.CancelledError) as error:
            exchange.failed = True
            said = b"data: " + codec.encode(error_object(told(request, error))) + b"\n\n"
            await response.write(said)
            exchange.sent(len(said))
    await response.write_eof()
    return response


async def websocket(request: web.Request, message_limit: int = BODY_LIMIT) -> web.WebSocketResponse:
    """The request's socket, open; silent peers are closed, and all of them (1001) when the server stops.

    A handler that can end by itself does so when `request.app[IN_FLIGHT].draining` is set.
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


def told(request: web.Request, error: BaseException) -> FrameworkError:
    """What the client is told of a failure: our own errors as they are, any other only in the log.

    A cancellation goes on being one, unless it is the server's own at the end of its time to stop.
    """
    if isinstance(error, asyncio.CancelledError):
        if not request.app[IN_FLIGHT].was_ended():
            raise error
        return StoppingError("the server has stopped before the answer was complete")
    if isinstance(error, FrameworkError):
        return error
    log.error("request %s failed", request[REQUEST_ID], exc_info=error)
    return FrameworkError("internal error; the server's log has the details")


def error_object(error: FrameworkError) -> dict[str, dict[str, str | None]]:
    """OpenAI's error object."""
    message = error.message.encode(errors="replace").decode()  # what a client sent may be no text
    return {"error": {"message": message, "type": error.type, "param": error.param, "code": error.code}}
