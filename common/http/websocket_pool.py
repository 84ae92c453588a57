"""Keeps idle WebSockets to one server open, so that the next answer needs no handshake."""

import asyncio

from aiohttp import ClientWebSocketResponse, WSMessage


class WebSocketPool:
    """Owns each socket from `put` to `take`, with a task that reads it to answer pings and notice a close."""

    def __init__(self, limit: int) -> None:
        """`limit`: the number of idle sockets to keep."""
        self._limit = limit
        self._idle: dict[ClientWebSocketResponse, asyncio.Task[WSMessage]] = {}
        self._closing = set[asyncio.Task[bool]]()

    def __len__(self) -> int:
        return len(self._idle)

    def put(self, socket: ClientWebSocketResponse) -> None:
        """Keeps an idle socket, or closes it when the pool is full."""
        if len(self._idle) >= self._limit:
            self._close(socket)
            return
        reading = self._idle[socket] = asyncio.create_task(socket.receive())
        reading.add_done_callback(lambda _: self._drop(socket))

    async def take(self) -> ClientWebSocketResponse | None:
        """The socket used last that is still open; None if there is none."""
        while self._idle:
            socket, reading = self._idle.popitem()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            if reading.cancelled() and not socket.closed:
                return socket
            self._close(socket)
        return None

    async def close(self) -> None:
        while self._idle:
            socket, reading = self._idle.popitem()
            reading.cancel()
            self._close(socket)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _drop(self, socket: ClientWebSocketResponse) -> None:
        """Closes a socket that the server has closed, or on which it sent an unexpected message."""
        if self._idle.pop(socket, None) is not None:
            self._close(socket)

    def _close(self, socket: ClientWebSocketResponse) -> None:
        closing = asyncio.create_task(socket.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
