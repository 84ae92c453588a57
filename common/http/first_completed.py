"""Several works at once until the first of them ends. Knows not what they do."""

import asyncio
from collections.abc import Awaitable


async def first(*works: Awaitable[object]) -> None:
    """Returns, or raises, as the first of `works` does; the others are cancelled, and have ended by then."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
