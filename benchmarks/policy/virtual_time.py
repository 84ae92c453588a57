"""An event loop whose clock jumps to the next timer: what waits for seconds is simulated in microseconds."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from common.errors import ConfigError

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Does not wait: moves `now` on by the time that it is asked to wait."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise ConfigError("the simulation waits for something that will never happen")
            self.now += max(timeout, 0.0)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """For code that waits only by asyncio and reads the loop's clock; in seconds from 0."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def simulate(program: Coroutine[Any, Any, T]) -> T:
    """Runs `program` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(program)
