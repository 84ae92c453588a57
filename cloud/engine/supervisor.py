"""Keeps one engine alive: starts it, watches it, kills it when it hangs, starts it again. Knows no HTTP and no vLLM.

A hanging engine is one that leaves a ping unanswered: its process may still live (stopped, stuck in a step, swapped
out). What waits for an engine that is lost fails at once, whether the engine's own library notices or not.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from common.errors import EngineError, FrameworkError

log = logging.getLogger(__name__)

PATIENCE = 3
"""An engine that is silent is doubted; after this many times as long it is lost."""


class SupervisedEngine(Protocol):
    """What the keeper needs of an engine. The same object is started again after `kill` and `close`."""

    async def start(self) -> None:
        """Returns when the engine answers; raises StartError. Cancelled: leaves nothing behind."""

    async def close(self) -> None:
        """Frees everything, started or not; requests still running fail with EngineError."""

    async def check_health(self) -> None:
        """Returns at once; raises EngineError when the engine is known to be dead."""

    async def ping(self) -> None:
        """Returns when the loop of the engine's process has answered; never, or EngineError, when it does not."""

    def kill(self) -> None:
        """Ends the engine's processes, all of them, also stopped ones, without asking them."""


@dataclass(frozen=True, slots=True)
class SupervisorTiming:
    """Seconds: between two looks, of silence that is a hang, pauses before starts, of health that ends their growth."""

    watch: float = 0.5
    hang: float = 4.0
    first_pause: float = 1.0
    longest_pause: float = 30.0
    healthy: float = 60.0
    close: float = 15.0


class EngineKeeper:
    """Owns `engine`. One task runs `run`; requests work inside `using`. `on_loss` is called for each engine lost."""

    def __init__(
        self,
        engine: SupervisedEngine,
        pace: SupervisorTiming = SupervisorTiming(),
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._pace = pace
        self._on_loss = on_loss
        self._waiting: set[_Use] = set()
        self._settled = asyncio.Event()
        self._down: FrameworkError | None = EngineError("the engine is starting")
        self._pause = pace.first_pause

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self._down is None

    def check(self) -> None:
        """Raises EngineError, saying what is the matter, unless the engine is up; for GET /ready."""
        if self._down is not None:
            raise EngineError(self._down.message)

    async def wait_up(self) -> None:
        """Returns when the engine is up; raises what its first start failed with, or EngineError once it is closed."""
        while self._down is not None:
            await self._settled.wait()
            if self._down is not None and self._settled.is_set():
                raise self._down

    @contextmanager
    def using(self) -> Iterator[None]:
        """Around everything that waits for the engine, in one task; raises EngineError when it is down or gets lost."""
        self.check()
        use = _Use()
        self._waiting.add(use)
        try:
            with use:
                yield
        finally:
            self._waiting.discard(use)

    async def run(self) -> None:
        """Until cancelled; raises what the first start fails with: a wrong model will not become right by waiting."""
        try:
            await self._engine.start()
            while True:
                self._rise()
                began = time.monotonic()
                reason = await self._lost()
                if time.monotonic() - began >= self._pace.healthy:
                    self._pause = self._pace.first_pause
                log.error("%s; it is started again", reason)
                self._on_loss()
                self._fall(EngineError(f"{reason}; it is being started again"))
                await self._restart()
        except FrameworkError as error:
            self._end(error)
            raise
        finally:
            self._end(EngineError("the engine is closed"))
            await self._engine.close()

    async def _lost(self) -> str:
        """Watches an engine that is up, and returns how it was lost."""
        while True:
            ping = asyncio.create_task(self._engine.ping())
            try:
                # Counted in looks, not by the clock: while our own loop stands still, no engine can answer.
                looks = math.ceil(self._pace.hang / self._pace.watch)
                for look in range(1, PATIENCE * looks + 1):
                    await asyncio.wait({ping}, timeout=self._pace.watch)
                    await self._engine.check_health()
                    if ping.done():
                        break
                    if look == looks:
                        self._doubt()
                else:
                    return f"the engine has not answered for {PATIENCE * self._pace.hang:g} s"
                ping.result()
                if self._down is not None:
                    self._rise()
            except Exception as error:  # whatever a broken engine raises, it is broken
                log.debug("the engine is lost", exc_info=error)
                return error.message if isinstance(error, FrameworkError) else f"the engine has failed: {error}"
            finally:
                ping.cancel()
                await asyncio.gather(ping, return_exceptions=True)
            await asyncio.sleep(self._pace.watch)

    async def _restart(self) -> None:
        while True:
            await self._clear_away()
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, self._pace.longest_pause)
            try:
                await self._engine.start()
            except Exception as error:
                log.error("the engine did not start again: %s", error)
            else:
                return

    async def _clear_away(self) -> None:
        self._engine.kill()
        try:
            async with asyncio.timeout(self._pace.close):
                await self._engine.close()
        except Exception as error:
            log.error("the lost engine could not be closed", exc_info=error)

    def _doubt(self) -> None:
        """Nothing new is taken until the engine answers; what waits goes on waiting, as a step may only be long."""
        self._down = EngineError(f"the engine has not answered for {self._pace.hang:g} s")
        self._settled.clear()
        log.warning("%s", self._down.message)

    def _rise(self) -> None:
        self._down = None
        self._settled.set()

    def _fall(self, error: FrameworkError) -> None:
        """Not ready from now on; what waits fails with `error`."""
        self._down = error
        self._settled.clear()
        for use in list(self._waiting):
            use.fail(error.message)

    def _end(self, error: FrameworkError) -> None:
        """The last `_fall`: nothing follows it, and `wait_up` says so."""
        if not (self._settled.is_set() and self._down is not None):
            self._fall(error)
            self._settled.set()


class _Use:
    """One task's wait for the engine, which `fail` ends with EngineError (as asyncio.timeout ends one)."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._reason: str | None = None

    def fail(self, reason: str) -> None:
        assert self._task is not None
        self._reason = reason
        self._task.cancel()

    def __enter__(self) -> None:
        assert self._task is not None
        self._others = self._task.cancelling()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: object) -> None:
        assert self._task is not None
        if self._reason is not None and self._task.uncancel() <= self._others and kind is asyncio.CancelledError:
            raise EngineError(self._reason) from error
