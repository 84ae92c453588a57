"""Tracks the requests that a server is working on, so that it can drain and cancel them."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

CANCEL_SECONDS = 1.0
"""How long cancelled requests may take to send their clients an error."""


class InFlight:
    """The task of each running request. Once `draining` is set the server accepts no new requests.

    Used from one event loop: the middleware adds tasks, the server drains and cancels them.
    """

    def __init__(self) -> None:
        self.draining = asyncio.Event()
        self._tasks: set[asyncio.Task[object]] = set()
        self._cancelled: set[asyncio.Task[object]] = set()
        self._calls: set[str] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._tasks)

    @contextmanager
    def track(self, call_id: str = "") -> Iterator[None]:
        """Counts the running task as a request in flight until the block ends; its client may ask for `call_id`."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._calls.add(call_id)
        self._idle.clear()
        try:
            yield
        finally:
            self._tasks.discard(task)
            self._cancelled.discard(task)
            self._calls.discard(call_id)
            if not self._tasks:
                self._idle.set()

    def works_on(self, call_id: str) -> bool:
        """Whether the call with this id is in flight."""
        return bool(call_id) and call_id in self._calls

    async def wait_idle(self) -> None:
        """Returns when no request is in flight."""
        await self._idle.wait()

    async def cancel_all(self) -> None:
        """Cancels all requests and waits up to CANCEL_SECONDS for their error replies."""
        self._cancelled |= self._tasks
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CANCEL_SECONDS)

    def take_cancellation(self) -> bool:
        """Whether `cancel_all` cancelled the running task; if so, clears that so that it can reply."""
        task = asyncio.current_task()
        if task not in self._cancelled:
            return False
        self._cancelled.discard(task)
        task.uncancel()
        return True


IN_FLIGHT = web.AppKey("IN_FLIGHT", InFlight)
