"""How an engine's thread lives: takes work as it comes, steps on it, wakes who waits. Knows no event loop, no model."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from common.errors import EngineError, FrameworkError
from edge.engine.jobs import Awaited

J = TypeVar("J", bound=Awaited)

logger = logging.getLogger(__name__)


class Stepping(ABC, Generic[J]):
    """Runs in the engine's thread; only the inbox, `cancelled`, `abort` and what is read are for others."""

    def __init__(self, inbox: SimpleQueue[Any], ring: Callable[[list[asyncio.Future[None]]], None]) -> None:
        self._inbox = inbox
        self._ring = ring
        self._active: list[J] = []
        self._in_step: list[J] = []
        self._to_wake: list[asyncio.Future[None]] = []
        self.step_began: float | None = None

    def serve(self) -> None:
        """Steps until a None comes; then fails what is left."""
        while self._admit():
            self._active = [job for job in self._active if not job.cancelled]
            if self._active:
                self.step_began = time.monotonic()
                self._step()
                self.step_began, self._in_step = None, []
                self._tell()

    def cancelled(self) -> None:
        """Some job was cancelled: ends the step under way if nobody wants it any more. From any thread."""
        in_step = self._in_step
        if in_step and all(job.cancelled for job in in_step):
            self.abort()

    @abstractmethod
    def abort(self) -> None:
        """Ends the step under way; from any thread."""

    @abstractmethod
    def free(self) -> None:
        """Gives back what was loaded."""

    @abstractmethod
    def _receive(self, message: Any) -> None:
        """Takes what came in the inbox, between two steps."""

    @abstractmethod
    def _step(self) -> None:
        """Does a part of some of the active jobs, of which there are some."""

    def _admit(self) -> bool:
        """Takes what came in, and waits if there is nothing else to do; False when the engine is to stop."""
        while not self._active or not self._inbox.empty():
            if not self._active:
                self._wake()
            message = self._inbox.get()
            if message is None:
                for job in self._active:
                    job.fail(EngineError("the edge model was stopped"))
                self._tell()
                self._wake()
                return False
            self._receive(message)
        return True

    def _guarded(self, work: Callable[[list[J]], None], jobs: list[J]) -> None:
        """Does `work` for `jobs`; what goes wrong with it fails them, and nothing else."""
        try:
            work(jobs)
        except Exception as fault:
            if not isinstance(fault, FrameworkError):
                logger.exception("a step of the edge model failed")
            for job in jobs:
                job.fail(fault)

    def _tell(self) -> None:
        """Takes down which owners there is news for, and forgets the jobs that are done."""
        self._to_wake += [waiter for job in self._active if (waiter := job.take_waiter())]
        self._active = [job for job in self._active if not job.done]

    def _wake(self) -> None:
        """Wakes those owners, all at once: when this thread is about to wait, or to compute without Python."""
        if self._to_wake:
            waiters, self._to_wake = self._to_wake, []
            self._ring(waiters)
