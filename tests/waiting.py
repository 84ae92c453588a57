"""Waits for what a test expects to become true, however slow the machine is."""

import asyncio
from collections.abc import Callable

PATIENCE = 30.0
"""Seconds after which what has not become true never will."""


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.002)
