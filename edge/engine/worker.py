"""The thread that a model runs in: loaded there, served there, freed there. Knows no model and no work."""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from edge.engine.loop_waker import Bell

STUCK_AFTER_S = 30.0
"""A step that takes longer than this counts as never ending."""


class ThreadEngine(Protocol):
    """What runs in the thread."""

    step_began: float | None
    """When the step under way began, as `time.monotonic` counts; from any thread."""

    def serve(self) -> None:
        """Does what comes in the inbox until a None does; then fails what is left."""
        ...

    def abort(self) -> None:
        """Ends the step under way; from any thread."""
        ...

    def free(self) -> None:
        """Gives back what was loaded."""
        ...


E = TypeVar("E", bound=ThreadEngine)


class EngineThread(Generic[E]):
    """Used from one event loop, `start` to `close`; `load` runs in the thread and gets the bell that wakes the loop."""

    def __init__(self, name: str, inbox: SimpleQueue[Any], load: Callable[[Bell], E]) -> None:
        self.engine: E | None = None
        """What was loaded, as long as it runs."""
        self.closing = False
        self._inbox = inbox
        self._load = load
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._bell: Bell | None = None
        self._started: Future[None] = _promise()
        self._stopped: Future[None] = _promise()

    async def start(self) -> None:
        """Loads in the thread, once; raises what that raises, and then nothing is left running."""
        if self._thread.ident is None:
            self._bell = Bell()
            self._thread.start()
        try:
            await asyncio.wrap_future(self._started)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Fails what still waits, frees the engine and ends the thread."""
        self.closing = True
        self._inbox.put(None)
        if self.engine is not None:
            self.engine.abort()
        if self._thread.ident is not None:
            await asyncio.wrap_future(self._stopped)
            self._thread.join()
        if self._bell is not None:
            self._bell.close()
            self._bell = None

    @property
    def alive(self) -> bool:
        """Whether the engine runs and is not stuck in a step."""
        engine = self.engine
        began = engine.step_began if engine else None
        stuck = began is not None and time.monotonic() - began > STUCK_AFTER_S
        return engine is not None and self._thread.is_alive() and not self.closing and not stuck

    def _run(self) -> None:
        assert self._bell is not None
        try:
            engine = self.engine = self._load(self._bell)
        except Exception as fault:
            self._started.set_exception(fault)
        else:
            self._started.set_result(None)
            engine.serve()
            self.engine = None
            engine.free()
        self._stopped.set_result(None)


def cores_for_compute() -> int:
    """All but one, which is the event loop's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


def _promise() -> Future[None]:
    """A future that is kept even if nobody waits any more."""
    promise: Future[None] = Future()
    promise.set_running_or_notify_cancel()
    return promise
