"""Simulates a network with a TCP proxy: delay and bandwidth each way, stalls, broken connections.

`async with DelayProxy("127.0.0.1", port, delay=0.025) as proxy:` then connect to `proxy.port`. `delay` and
`bandwidth` can be changed while connections are open; they hold for what is sent from then on. All connections share
one line. A new connection costs a round trip, as TCP's handshake does.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Self

CHUNK = 64 * 1024
IN_FLIGHT = 256
"""Chunks in flight in one direction; a faster sender has to wait."""


@dataclass
class Direction:
    """One direction: bytes sent so far, and when it is free again (the event loop's clock, seconds)."""

    bytes: int = 0
    free: float = 0.0

    def send(self, size: int, now: float, bandwidth: float | None) -> float:
        """Queues `size` bytes behind earlier ones; returns the time at which the last of them is sent."""
        self.bytes += size
        self.free = max(self.free, now) + (size / bandwidth if bandwidth else 0.0)
        return self.free


class DelayProxy:
    """A proxy in front of one TCP port. Owns its listening socket and all connections; pair `start` with `stop`."""

    def __init__(self, host: str, port: int, delay: float = 0.0, bandwidth: float | None = None) -> None:
        """`delay`: seconds each way, half a round trip. `bandwidth`: bytes per second each way, None for no limit."""
        self.delay, self.bandwidth = delay, bandwidth
        self.up, self.down = Direction(), Direction()
        self.connections = 0
        """Connections accepted so far."""
        self._target = host, port
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self.cut()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    def stall(self) -> None:
        """Holds everything back in both directions until `flow`; connections stay open."""
        self._flowing.clear()

    def flow(self) -> None:
        """Ends a stall."""
        self._flowing.set()

    async def cut(self) -> None:
        """Breaks all open connections."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await asyncio.sleep(2 * self.delay)
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, far_writer, self.up))
                    group.create_task(self._pump(far_reader, writer, self.down))
            finally:
                far_writer.transport.abort()
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # one side has closed or the connection was cut: close the other side too
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Direction) -> None:
        """Passes bytes on in order, `delay` seconds after they are sent, at most `bandwidth` of them a second."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT)
        delivering = asyncio.create_task(self._deliver(queue, writer))
        try:
            while data := await reader.read(CHUNK):
                await queue.put((line.send(len(data), loop.time(), self.bandwidth) + self.delay, data))
            await queue.put((loop.time() + self.delay, b""))
            await delivering
        finally:
            delivering.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await delivering

    async def _deliver(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await queue.get()
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            await self._flowing.wait()
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
