"""A thread that does one kind of work on what it is handed, in order. Knows nothing of the work."""

import logging
import threading
from collections.abc import Callable
from queue import Full, Queue
from typing import Generic, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Background(Generic[T]):
    """Belongs to who made it, who calls `close`; the thread starts with the first item. `room` items may wait."""

    def __init__(self, name: str, work: Callable[[T], None], room: int) -> None:
        self._work = work
        self._queue: Queue[T | None] = Queue(room)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def hand_over(self, item: T) -> bool:
        """Never waits; False if there is no room for the item. From one thread only."""
        if self._thread.ident is None:
            self._thread.start()
        try:
            self._queue.put_nowait(item)
        except Full:
            return False
        return True

    def flush(self) -> None:
        """Waits until everything handed over is done."""
        self._queue.join()

    def close(self) -> None:
        """Does what still waits, then ends the thread."""
        if self._thread.ident is not None:
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._work(item)
            except Exception:
                logger.exception("work in the background failed")
            finally:
                self._queue.task_done()
        self._queue.task_done()
