"""Runs several coroutines until the first one ends."""

import asyncio
from collections.abc import Awaitable


async def first_completed(*awaitables: Awaitable[object]) -> None:
    """Returns or raises as the first of `awaitables` does, after the others were cancelled and have ended."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
