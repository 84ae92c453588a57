"""Fails an answer that stands still: it waits, and nothing that it waits for shows a sign of work.

Work may take as long as it takes, silence may not. So each wait of an answer is named by `waiting`, with what shows
that it is being worked on; `watched` looks at both from time to time.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from common.errors import EngineError

STILL_SECONDS = 60.0
"""An answer without any sign of work for this long fails: more than a wait with a deadline of its own takes."""
CHECKS = 4
"""Looks within that time. They are counted, so that a suspended machine fails nothing."""


def no_sign() -> object:
    return None


class _Wait(NamedTuple):
    """A wait that has begun; `sign` gives another value whenever there was work since the last call."""

    what: str
    sign: Callable[[], object]
    began: float


class Progress:
    """The waits of one answer, several at once if it has several tasks. Used from one event loop."""

    def __init__(self) -> None:
        self._waits: dict[int, _Wait] = {}
        self._changes = 0
        self._longest = 0.0
        self._longest_for = ""

    @property
    def waits_for(self) -> str:
        """What the answer waits for now, in words; empty: for nothing that has a name."""
        return " and ".join(wait.what for wait in self._waits.values())

    @property
    def longest(self) -> tuple[str, float]:
        """The longest wait so far, and its seconds; one that still runs counts."""
        running = [(time.monotonic() - wait.began, wait.what) for wait in self._waits.values()]
        seconds, what = max([(self._longest, self._longest_for), *running])
        return what, seconds

    def mark(self) -> object:
        """Another value whenever there was a sign of work since the last call."""
        return self._changes, [wait.sign() for wait in self._waits.values()]

    def record_work(self) -> None:
        """Notes a sign of work."""
        self._changes += 1

    @contextmanager
    def waiting(self, what: str, sign: Callable[[], object]) -> Iterator[None]:
        self._changes += 1
        number, wait = self._changes, _Wait(what, sign, time.monotonic())
        self._waits[number] = wait
        try:
            yield
        finally:
            del self._waits[number]
            self._changes += 1
            self._longest, self._longest_for = max(
                (self._longest, self._longest_for), (time.monotonic() - wait.began, what)
            )


current_progress: ContextVar[Progress | None] = ContextVar("current_progress", default=None)
"""That of the answer that the running task works for; None where nobody watches."""


@contextmanager
def waiting(what: str, sign: Callable[[], object] = no_sign) -> Iterator[None]:
    """Around a wait of the current answer for `what`; see `Progress.mark` for `sign`."""
    progress = current_progress.get()
    if progress is None:
        yield
        return
    with progress.waiting(what, sign):
        yield


def record_work() -> None:
    """Notes a sign of work on the current answer."""
    if progress := current_progress.get():
        progress.record_work()


@asynccontextmanager
async def watched() -> AsyncIterator[Progress]:
    """Around one answer, in its task: raises EngineError that says where it stands still for STILL_SECONDS."""
    progress = Progress()
    current_progress.set(progress)
    try:
        async with asyncio.timeout(None) as deadline:
            watching = asyncio.create_task(_watch(progress, deadline))
            try:
                yield progress
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
    except TimeoutError as error:
        if not deadline.expired():
            raise
        place = f"waited for {watching.result()}" if watching.done() and not watching.cancelled() else "stood still"
        raise EngineError(f"no sign of work for {STILL_SECONDS:g} s: the answer {place}") from error
    finally:
        current_progress.set(None)


async def _watch(progress: Progress, deadline: asyncio.Timeout) -> str:
    """Ends the answer when it has stood still for too long; returns what it waited for."""
    still, mark = 0, progress.mark()
    while still < CHECKS:
        await asyncio.sleep(STILL_SECONDS / CHECKS)
        before, mark = mark, progress.mark()
        still = still + 1 if mark == before else 0
    deadline.reschedule(asyncio.get_running_loop().time())
    return progress.waits_for or "something that has no name"
