"""WebSockets to one server that stay open between two answers, which saves the next its handshakes. Knows no frames."""

import asyncio

from aiohttp import ClientWebSocketResponse, WSMessage


class KeptSockets:
    """Owns each socket from `put` to `take`, and a task that reads it: that answers pings and sees the server leave."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._idle: dict[ClientWebSocketResponse, asyncio.Task[WSMessage]] = {}
        self._closing = set[asyncio.Task[bool]]()

    def __len__(self) -> int:
        return len(self._idle)

    def put(self, socket: ClientWebSocketResponse) -> None:
        """Keeps a socket on which nothing is under way; beyond the limit it is closed."""
        if len(self._idle) >= self._limit:
            self._close(socket)
            return
        reading = self._idle[socket] = asyncio.create_task(socket.receive())
        reading.add_done_callback(lambda _: self._drop(socket))

    async def take(self) -> ClientWebSocketResponse | None:
        """The one that was used last, if there is one whose server has not left."""
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
        """The server has closed it, or says something that nobody asked for."""
        if self._idle.pop(socket, None) is not None:
            self._close(socket)

    def _close(self, socket: ClientWebSocketResponse) -> None:
        closing = asyncio.create_task(socket.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
