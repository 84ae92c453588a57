"""Supervises one engine: starts it, watches it, kills it when it hangs or dies, and starts it again.

An engine hangs when it neither answers a ping nor computes; its process may still exist (stopped, deadlocked).
Requests that wait for a lost engine fail at once, whether the engine's own library notices the loss or not.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from cloud.engine.engine_wait import EngineWait
from common.errors import EngineError, FrameworkError

log = logging.getLogger(__name__)

PATIENCE = 3
"""An engine that is silent for `hang` seconds takes no new requests; after this many times as long it is lost."""


class SupervisedEngine(Protocol):
    """What the supervisor needs of an engine. The same object is started again after `kill` and `close`."""

    async def start(self) -> None:
        """Returns when the engine answers; raises StartError. A cancelled start leaves nothing behind."""

    def start_progress(self) -> str:
        """What a start that runs is doing, in a few words."""

    async def close(self) -> None:
        """Frees everything, started or not; requests still running fail with EngineError."""

    async def check_health(self) -> None:
        """Returns at once; raises EngineError when the engine is known to be dead."""

    async def ping(self) -> None:
        """Returns when the engine process's loop has answered; if it does not, raises EngineError or never returns."""

    def computing(self) -> bool:
        """Whether the engine has computed since the last call: it answers no ping during a step, which may be long."""

    def steps(self) -> int:
        """Steps that the engine has computed."""

    def kill(self) -> None:
        """Kills all of the engine's processes, also stopped ones."""


@dataclass(frozen=True, slots=True)
class SupervisorTiming:
    """All in seconds: `watch` between two checks, `hang` without an answer until no request is taken, `idle` without a
    step of an engine that answers until what waits for it fails.

    Pauses before restarts double from `first_pause` to `longest_pause`, and begin again at `first_pause` after
    `healthy` seconds without a loss. `close` limits how long closing a lost engine may take.
    """

    watch: float = 0.5
    hang: float = 4.0
    idle: float = 60.0
    first_pause: float = 1.0
    longest_pause: float = 30.0
    healthy: float = 60.0
    close: float = 15.0


class EngineSupervisor:
    """Owns `engine`. One task runs `run`; requests work inside `using`; `on_loss` is called at each loss."""

    def __init__(
        self,
        engine: SupervisedEngine,
        timing: SupervisorTiming = SupervisorTiming(),
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._timing = timing
        self._on_loss = on_loss
        self._waiting: set[EngineWait] = set()
        self._settled = asyncio.Event()
        self._down: FrameworkError | None = EngineError("the engine is starting")
        self._starting = False
        self._pause = timing.first_pause
        self._steps = 0
        """The engine's steps at the last check."""

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self._down is None

    def check(self) -> None:
        """Raises EngineError with the reason unless the engine is up, and how far a start is; for GET /ready."""
        if self._down is not None:
            progress = self._engine.start_progress() if self._starting else ""
            raise EngineError(f"{self._down.message}: {progress}" if progress else self._down.message)

    async def wait_up(self) -> None:
        """Returns when the engine is up; raises the error of its first start, or EngineError once it is closed."""
        while self._down is not None:
            await self._settled.wait()
            if self._down is not None and self._settled.is_set():
                raise self._down

    @contextmanager
    def using(self) -> Iterator[None]:
        """Around whatever waits for the engine, in one task; raises EngineError if the engine is down or gets lost."""
        self.check()
        use = EngineWait()
        self._waiting.add(use)
        try:
            with use:
                yield
        finally:
            self._waiting.discard(use)

    async def run(self) -> None:
        """Runs until cancelled; raises the error of the first start, because waiting does not mend a wrong model."""
        try:
            await self._start()
            while True:
                self._set_up()
                began = time.monotonic()
                reason = await self._lost()
                if time.monotonic() - began >= self._timing.healthy:
                    self._pause = self._timing.first_pause
                log.error("%s; it is started again", reason)
                self._on_loss()
                self._set_down(EngineError(f"{reason}; it is being started again"))
                await self._restart()
        except FrameworkError as error:
            self._end(error)
            raise
        finally:
            self._end(EngineError("the engine is closed"))
            await self._engine.close()

    async def _start(self) -> None:
        self._starting = True
        try:
            await self._engine.start()
        finally:
            self._starting = False

    async def _lost(self) -> str:
        """Watches an engine that is up; returns the reason when it is lost."""
        while True:
            ping = asyncio.create_task(self._engine.ping())
            try:
                if await self._silent(ping):
                    return f"the engine has not answered for {PATIENCE * self._timing.hang:g} s"
                ping.result()
                self._resume()
                self._fail_forgotten()
            except Exception as error:  # of any kind: the engine is broken
                log.debug("the engine is lost", exc_info=error)
                return error.message if isinstance(error, FrameworkError) else f"the engine has failed: {error}"
            finally:
                ping.cancel()
                await asyncio.gather(ping, return_exceptions=True)
            await asyncio.sleep(self._timing.watch)

    def _fail_forgotten(self) -> None:
        """Fails what has waited long for an engine that computes nothing: no step would ever answer it."""
        before, self._steps = self._steps, self._engine.steps()
        for use in list(self._waiting):
            use.idle_checks = use.idle_checks + 1 if self._steps == before else 0
            if use.idle_checks * self._timing.watch >= self._timing.idle:
                log.error("a request has waited for %g s without a step of the engine, and fails", self._timing.idle)
                use.fail(f"the engine has computed nothing for {self._timing.idle:g} s")

    async def _silent(self, ping: asyncio.Task[None]) -> bool:
        """Waits for `ping` as long as the engine computes; returns True if it did neither for too long."""
        # Counted in checks, not by the clock: while this process's own loop stands still, no engine can answer.
        checks, silent = math.ceil(self._timing.hang / self._timing.watch), 0
        while silent < PATIENCE * checks:
            await asyncio.wait({ping}, timeout=self._timing.watch)
            await self._engine.check_health()
            if ping.done():
                return False
            if self._engine.computing():
                silent = 0
                self._resume()
                continue
            silent += 1
            if silent == checks:
                self._suspend()
        return True

    async def _restart(self) -> None:
        while True:
            await self._clear_away()
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, self._timing.longest_pause)
            try:
                await self._start()
            except Exception as error:
                log.error("the engine did not start again: %s", error)
            else:
                return

    async def _clear_away(self) -> None:
        self._engine.kill()
        try:
            async with asyncio.timeout(self._timing.close):
                await self._engine.close()
        except Exception as error:
            log.error("the lost engine could not be closed", exc_info=error)

    def _suspend(self) -> None:
        """Takes no new requests until the engine answers; those that wait keep waiting, as it may still do so."""
        self._down = EngineError(f"the engine has not answered for {self._timing.hang:g} s")
        self._settled.clear()
        log.warning("%s", self._down.message)

    def _resume(self) -> None:
        if self._down is not None:
            self._set_up()

    def _set_up(self) -> None:
        self._down = None
        self._settled.set()

    def _set_down(self, error: FrameworkError) -> None:
        """Takes no requests from now on; those that wait fail with `error`."""
        self._down = error
        self._settled.clear()
        for use in list(self._waiting):
            use.fail(error.message)

    def _end(self, error: FrameworkError) -> None:
        """The last `_set_down`: no start follows, and `wait_up` raises."""
        if not (self._settled.is_set() and self._down is not None):
            self._set_down(error)
            self._settled.set()
