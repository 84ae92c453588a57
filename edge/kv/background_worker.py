"""A thread that processes queued items in order."""

import logging
import threading
from collections.abc import Callable
from queue import Full, Queue
from typing import Generic, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


class BackgroundWorker(Generic[T]):
    """Calls `work` for each item in the thread `name`, which starts with the first item and ends with `close`.

    `capacity`: items that may wait. Errors of `work` are logged.
    """

    def __init__(self, name: str, work: Callable[[T], None], capacity: int) -> None:
        self._work = work
        self._queue: Queue[T | None] = Queue(capacity)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def submit(self, item: T) -> bool:
        """Queues `item` without waiting; False if the queue is full. Only one thread may call it."""
        if self._thread.ident is None:
            self._thread.start()
        try:
            self._queue.put_nowait(item)
        except Full:
            return False
        return True

    def flush(self) -> None:
        """Waits until all queued items are done."""
        self._queue.join()

    def close(self) -> None:
        """Processes the queued items, then ends the thread."""
        if self._thread.ident is not None:
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._work(item)
            except Exception:
                logger.exception("background work failed")
            finally:
                self._queue.task_done()
        self._queue.task_done()
