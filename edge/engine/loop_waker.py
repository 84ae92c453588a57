"""Resolves futures of an event loop from another thread without releasing the interpreter's lock (GIL)."""

import asyncio
import ctypes
import os
from collections import deque

# A call through PyDLL keeps the GIL; asyncio's call_soon_threadsafe releases it. The loop would wake up, take the GIL
# at once, and the engine's thread would stand still for as long as the loop handles the results.
_write = ctypes.PyDLL(None).write
_write.argtypes = ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t


class LoopWaker:
    """A pipe into the event loop that creates and closes it; one other thread calls `wake`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)  # a full pipe has already woken the loop
        self._loop.add_reader(self._read_end, self._on_readable)

    def wake(self, waiters: list[asyncio.Future[None]]) -> None:
        """Makes the loop resolve `waiters` as soon as it gets the GIL; called in the other thread."""
        self._waiters += waiters
        _write(self._write_end, b"x", 1)

    def close(self) -> None:
        """Resolves the waiters that are left and closes the pipe; `wake` must not be called any more."""
        self._loop.remove_reader(self._read_end)
        self._resolve()
        os.close(self._read_end)
        os.close(self._write_end)

    def _on_readable(self) -> None:
        os.read(self._read_end, 4096)
        self._resolve()

    def _resolve(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
