"""Shows the progress and the remaining time of a long run."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress(console: Console) -> Progress:
    """A progress bar. It estimates the time left from the last half hour, as pieces of work differ in length."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    return Progress(*columns, *times, console=console, speed_estimate_period=1800)


@asynccontextmanager
async def shown(console: Console, title: str, passed: Callable[[], float]) -> AsyncIterator[None]:
    """A progress bar beside the block, which asks once a second what share of its work has passed, 0 to 1."""

    async def show() -> None:
        while True:
            bar.update(task, completed=passed())
            await asyncio.sleep(1)

    with progress(console) as bar:
        task = bar.add_task(title, total=1)
        showing = asyncio.create_task(show())
        try:
            yield
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)
            bar.update(task, completed=1)


def of_time(seconds: float) -> Callable[[], float]:
    """The share that has passed of so many seconds from now on."""
    began = time.monotonic()
    return lambda: (time.monotonic() - began) / seconds
