"""A TCP proxy that behaves like a network: delay and bandwidth each way, a stall, a cut. Knows nothing of what passes.

`async with DelayProxy("127.0.0.1", port, delay=0.025) as proxy:` then connect to `proxy.port`. The attributes can be
changed while connections are open; they hold for what is sent from then on. All connections share one line, and a new
one costs a round trip, as TCP's handshake does.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Self

CHUNK = 64 * 1024
IN_FLIGHT = 256
"""Chunks that may be on their way in one direction; a sender that is faster is slowed down, as by a full pipe."""


@dataclass
class Direction:
    """One direction: how many bytes have gone into it so far, and when it is free again (the event loop's clock)."""

    bytes: int = 0
    free: float = 0.0

    def send(self, size: int, now: float, bandwidth: float | None) -> float:
        """Takes so many bytes behind what is there already; returns when the last of them has gone in."""
        self.bytes += size
        self.free = max(self.free, now) + (size / bandwidth if bandwidth else 0.0)
        return self.free


class DelayProxy:
    """Owns its listening socket and every connection through it; `start` and `stop` are paired."""

    def __init__(self, host: str, port: int, delay: float = 0.0, bandwidth: float | None = None) -> None:
        """`delay`: seconds each way, half a round trip. `bandwidth`: bytes per second each way, None for no limit."""
        self.delay, self.bandwidth = delay, bandwidth
        self.up, self.down = Direction(), Direction()
        self.connections = 0
        """Connections taken so far."""
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
        """Holds back everything, in both directions, until `flow`; connections stay open."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    async def cut(self) -> None:
        """Breaks every connection that is open now."""
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
            pass  # one side is gone, or the connection was cut: so is the other side, now
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Direction) -> None:
        """Bytes arrive `delay` after they went in, in order, at most `bandwidth` of them a second."""
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
