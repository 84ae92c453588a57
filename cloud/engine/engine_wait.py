"""One task's wait for an engine, which the engine's loss ends."""

import asyncio

from common.errors import EngineError


class EngineWait:
    """Around the wait; `fail` ends it with EngineError, as asyncio.timeout does with TimeoutError."""

    def __init__(self) -> None:
        self.idle_checks = 0
        """Checks in a row that saw no step of the engine."""
        self._task = asyncio.current_task()
        self._reason: str | None = None

    def fail(self, reason: str) -> None:
        assert self._task is not None
        if self._reason is None:  # it may fail for two reasons, but is cancelled once
            self._reason = reason
            self._task.cancel()

    def __enter__(self) -> None:
        assert self._task is not None
        self._others = self._task.cancelling()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: object) -> None:
        assert self._task is not None
        if self._reason is not None and self._task.uncancel() <= self._others and kind is asyncio.CancelledError:
            raise EngineError(self._reason) from error
