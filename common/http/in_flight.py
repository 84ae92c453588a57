"""The requests that a server is working on: counted, waited for, ended. Knows nothing of HTTP but its keys."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

END_SECONDS = 1.0


class InFlight:
    """Each request's task while it runs. Once `draining` is set the server takes no new ones.

    Used from one event loop; the middleware adds, the server drains and ends.
    """

    def __init__(self) -> None:
        self.draining = asyncio.Event()
        self._tasks: set[asyncio.Task[object]] = set()
        self._ended: set[asyncio.Task[object]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._tasks)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Around the work of one request, in its task."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._idle.clear()
        try:
            yield
        finally:
            self._tasks.discard(task)
            self._ended.discard(task)
            if not self._tasks:
                self._idle.set()

    async def idle(self) -> None:
        """Returns when nothing is being worked on."""
        await self._idle.wait()

    async def end(self) -> None:
        """Cancels what is left and gives it a moment to tell its clients."""
        self._ended |= self._tasks
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=END_SECONDS)

    def was_ended(self) -> bool:
        """Whether the running task was cancelled by `end`; true once, as it then goes on to say so."""
        task = asyncio.current_task()
        if task not in self._ended:
            return False
        self._ended.discard(task)
        task.uncancel()
        return True


IN_FLIGHT = web.AppKey("IN_FLIGHT", InFlight)
