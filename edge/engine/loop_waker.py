"""Wakes an event loop from the engine's thread without giving up the interpreter's lock. Knows no engine."""

import asyncio
import ctypes
import os
from collections import deque

# Through PyDLL a call keeps the lock, which asyncio's own call_soon_threadsafe lets go: the loop, awake at once, would
# take it, and the model stand still for as long as the loop writes out the news.
_write = ctypes.PyDLL(None).write
_write.argtypes = ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t


class Bell:
    """Made, answered and closed in the event loop; rung in any one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._inside, self._outside = os.pipe()
        os.set_blocking(self._inside, False)
        os.set_blocking(self._outside, False)  # a full pipe has already woken the loop
        self._loop.add_reader(self._inside, self._answer)

    def ring(self, waiters: list[asyncio.Future[None]]) -> None:
        """Has the loop resolve `waiters`, as soon as it gets the interpreter's lock."""
        self._waiters += waiters
        _write(self._outside, b"x", 1)

    def close(self) -> None:
        """Answers what is left; nobody may ring any more."""
        self._loop.remove_reader(self._inside)
        self._resolve()
        os.close(self._inside)
        os.close(self._outside)

    def _answer(self) -> None:
        os.read(self._inside, 4096)
        self._resolve()

    def _resolve(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
