"""Marks the requests that are lines of a batch on this edge: they wait behind people, and leave a sequence free."""

import asyncio
from contextvars import ContextVar

batch_turns: ContextVar[asyncio.Semaphore | None] = ContextVar("batch_turns", default=None)
"""Set for the lines of a batch: their answers, of all lines together, that may run at once; None: no such line."""


def queue_priority(asked: int) -> int:
    """The priority of a request that asks for one: a line of a batch has that of batches, whatever it asks for."""
    return asked if batch_turns.get() is None else max(1, asked)
