"""The thread that owns llama.cpp: takes jobs from its inbox, computes them step by step, wakes the event loop."""

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

from common.errors import EngineError, FrameworkError
from edge.engine.jobs import EngineJob
from edge.engine.loop_waker import LoopWaker

STUCK_AFTER_S = 30.0
"""Seconds after which the shortest step counts as stuck."""
SLOWEST_TOKEN_S = 1.0
"""Seconds for each of its tokens that a step may take longer: a model that is slower than this is of no use."""

J = TypeVar("J", bound=EngineJob)

logger = logging.getLogger(__name__)


class StepScheduler(ABC, Generic[J]):
    """Runs jobs in steps; a subclass owns the model and decides what goes into a step.

    Everything runs in the engine's thread, except that any thread may put messages into `inbox` (jobs, releases, None
    to stop), call `abort` and `abort_unwanted_step`, and read `step_began_at`.
    """

    def __init__(self, inbox: SimpleQueue[Any], wake: Callable[[list[asyncio.Future[None]]], None]) -> None:
        self._inbox = inbox
        self._wake_loop = wake
        self._active: list[J] = []
        self._in_step: list[J] = []
        self._to_wake: list[asyncio.Future[None]] = []
        self.step_began_at: float | None = None
        """`time.monotonic` at the start of the current step (seconds); None between steps."""
        self.step_tokens = 0
        """Tokens of the current step, as soon as they are known."""

    def serve(self) -> None:
        """Computes steps until None comes in the inbox; then fails the jobs that are left with EngineError."""
        while self._admit():
            self._active = [job for job in self._active if not job.cancelled]
            if self._active:
                self.step_tokens, self.step_began_at = 0, time.monotonic()
                self._step()
                self.step_began_at, self._in_step = None, []
                self._collect_waiters()

    def abort_unwanted_step(self) -> None:
        """Ends the current step if all its jobs are cancelled; from any thread."""
        in_step = self._in_step
        if in_step and all(job.cancelled for job in in_step):
            self.abort()

    @property
    def stuck(self) -> bool:
        """Whether the current step takes longer than any step of so many tokens; from any thread."""
        began_at, allowed = self.step_began_at, STUCK_AFTER_S + SLOWEST_TOKEN_S * self.step_tokens
        return began_at is not None and time.monotonic() - began_at > allowed

    def works_on(self, job: J) -> bool:
        """Whether a step is computed, and the job waits for this or a later one; from any thread."""
        computing = self.step_began_at is not None and not self.stuck
        return computing and (job in self._active or not self._inbox.empty())

    @abstractmethod
    def abort(self) -> None:
        """Ends the current step; from any thread."""

    @abstractmethod
    def free(self) -> None:
        """Frees the model."""

    @abstractmethod
    def _receive(self, message: Any) -> None:
        """Handles a message from the inbox, between two steps."""

    @abstractmethod
    def _step(self) -> None:
        """Computes a part of some of the active jobs; there is at least one."""

    def _admit(self) -> bool:
        """Handles the messages in the inbox and waits for one if no job is active; False when the engine must stop."""
        while not self._active or not self._inbox.empty():
            if not self._active:
                self._wake()
            message = self._inbox.get()
            if message is None:
                self.fail_all(EngineError("the edge model was stopped"))
                return False
            self._receive(message)
        return True

    def fail_all(self, error: EngineError) -> None:
        """Fails the active jobs, and those that wait in the inbox."""
        while not self._inbox.empty():
            if isinstance(message := self._inbox.get(), EngineJob):
                self._active.append(cast(J, message))
        for job in self._active:
            job.fail(error)
        self._to_wake += [waiter for job in self._active if (waiter := job.take_waiter())]
        self._active = []
        self._wake()

    def _guarded(self, work: Callable[[list[J]], None], jobs: list[J]) -> None:
        """Does `work` for `jobs`; an error fails these jobs only."""
        try:
            work(jobs)
        except Exception as error:
            if not isinstance(error, FrameworkError):
                logger.exception("a step of the edge model failed")
            for job in jobs:
                job.fail(error)

    def _collect_waiters(self) -> None:
        """Notes which owners have something new to read, and removes the jobs that are done."""
        self._to_wake += [waiter for job in self._active if (waiter := job.take_waiter())]
        self._active = [job for job in self._active if not job.done]

    def _wake(self) -> None:
        """Wakes these owners, all at once: called when this thread is about to wait or to compute without the GIL."""
        if self._to_wake:
            waiters, self._to_wake = self._to_wake, []
            self._wake_loop(waiters)


S = TypeVar("S", bound=StepScheduler[Any])


class EngineThread(Generic[S]):
    """Runs a scheduler in a thread of its own.

    The methods are called in one event loop, from `start` to `close`. `load` runs in the thread: it gets the waker of
    the loop and returns the scheduler, with its model loaded.
    """

    def __init__(self, name: str, inbox: SimpleQueue[Any], load: Callable[[LoopWaker], S]) -> None:
        self.scheduler: S | None = None
        """Set while it runs."""
        self.closing = False
        self._inbox = inbox
        self._load = load
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._waker: LoopWaker | None = None
        self._started = _uncancellable_future()
        self._stopped = _uncancellable_future()

    async def start(self) -> None:
        """Starts the thread and loads the model, once; raises what `load` raises, and then the thread has ended."""
        if self._thread.ident is None:
            self._waker = LoopWaker()
            self._thread.start()
        try:
            await asyncio.wrap_future(self._started)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Fails the jobs that still wait, frees the model and ends the thread."""
        self.closing = True
        self._inbox.put(None)
        if self.scheduler is not None:
            self.scheduler.abort()
        if self._thread.ident is not None:
            await asyncio.wrap_future(self._stopped)
            self._thread.join()
        if self._waker is not None:
            self._waker.close()
            self._waker = None

    @property
    def alive(self) -> bool:
        """Whether the scheduler runs and its current step is not stuck."""
        scheduler = self.scheduler
        return scheduler is not None and self._thread.is_alive() and not self.closing and not scheduler.stuck

    def works_on(self, job: EngineJob) -> bool:
        """Whether the thread computes, and `job` waits for this step or a later one."""
        return self.scheduler is not None and self.scheduler.works_on(job)

    def _run(self) -> None:
        assert self._waker is not None
        try:
            scheduler = self.scheduler = self._load(self._waker)
        except Exception as error:
            self._started.set_exception(error)
        else:
            self._started.set_result(None)
            try:
                scheduler.serve()
            except Exception:  # of any kind: nobody else would tell those that wait
                logger.exception("the thread %s has failed", self._thread.name)
                scheduler.fail_all(EngineError("the edge model has failed; its server must be started again"))
            self.scheduler = None
            scheduler.free()
        self._stopped.set_result(None)


def _uncancellable_future() -> Future[None]:
    """A future that can be resolved even if the task that waited for it was cancelled."""
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()
    return future
