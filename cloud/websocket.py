"""One client's WebSocket: receives and sends frames, counts their bytes, and notices that the client has left."""

import asyncio
from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar

from aiohttp import WSCloseCode, WSMsgType, web

from common.errors import EngineError, FrameworkError, OverloadedError, RequestError, StoppingError
from common.http.in_flight import IN_FLIGHT
from common.http.messages import Exchange

T = TypeVar("T")

SEND_SECONDS = 10.0
"""A client that does not read what was sent to it for this long counts as left; 64 KiB are buffered before that."""


def close_code(error: FrameworkError) -> WSCloseCode:
    """The code with which a connection is closed for `error`."""
    match error:
        case RequestError():
            return WSCloseCode.POLICY_VIOLATION
        case StoppingError():
            return WSCloseCode.GOING_AWAY
        case OverloadedError() | EngineError():
            return WSCloseCode.TRY_AGAIN_LATER
        case _:
            return WSCloseCode.INTERNAL_ERROR


async def unless_draining(request: web.Request, waiting: Coroutine[Any, Any, T], seconds: float) -> T | None:
    """What `waiting` returns; None after so many seconds, or when the server stops. It is cancelled then."""
    waits = asyncio.create_task(waiting), asyncio.create_task(request.app[IN_FLIGHT].draining.wait())
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return waits[0].result() if waits[0].done() else None
    finally:
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


class ClientLeftError(ConnectionError):
    """The client has left, so that nothing can be sent to it."""


class ReceivedFrame(NamedTuple):
    """One frame's content, and whether it came as text."""

    data: bytes
    text: bool


class ClientSocket:
    """The frames of one connection; their bytes are counted in the request's `exchange`."""

    def __init__(self, ws: web.WebSocketResponse, exchange: Exchange) -> None:
        self._ws = ws
        self._exchange = exchange

    async def receive(self) -> ReceivedFrame:
        """The next frame; raises ClientLeftError when the connection is closed."""
        message = await self._ws.receive()
        match message.type:
            case WSMsgType.BINARY:
                frame = ReceivedFrame(bytes(message.data), text=False)
            case WSMsgType.TEXT:
                frame = ReceivedFrame(message.data.encode(), text=True)
            case _:
                raise ClientLeftError
        self._exchange.bytes_in += len(frame.data)
        return frame

    async def send(self, data: bytes, text: bool = False) -> None:
        """Sends one frame; raises ClientLeftError when the client has left, or reads too slowly."""
        try:
            async with asyncio.timeout(SEND_SECONDS):
                if text:
                    await self._ws.send_str(data.decode())
                else:
                    await self._ws.send_bytes(data)
        except (TimeoutError, ConnectionError) as error:
            raise ClientLeftError from error
        self._exchange.record_sent(len(data))

    async def close(self, code: int = WSCloseCode.OK, reason: str = "") -> None:
        """Closes the connection; `reason` is cut to 100 bytes."""
        await self._ws.close(code=code, message=reason.encode()[:100])
