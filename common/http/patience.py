"""Waits for a late reply as long as the server says that it works on the call.

A long prompt on a slow machine takes minutes, a lost server must be noticed in seconds: no fixed deadline does both. So
a client that has waited for half of its patience asks, over another connection, whether the call is in flight.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from common.http.traffic import Traffic

CALL_ID_HEADER = "X-Call-Id"
"""Names one call; unlike a request id it is never used twice."""
CALL_ROUTE = "/calls/{id}"
"""GET: 200 while the call is in flight, 404 else."""

T = TypeVar("T")


@dataclass(slots=True)
class Call:
    """One call to a server, with what its attempts have cost so far."""

    method: str
    path: str
    body: bytes
    content_type: str
    seconds: float
    """For all attempts together, counted anew from each sign of work."""
    patience: float
    """Seconds of one attempt without a reply or a sign of work."""
    spent: Traffic = field(default_factory=Traffic)
    deadline: asyncio.Timeout | None = None
    """Of `seconds`; set while the call runs."""
    on_work: Callable[[], None] = lambda: None
    """Called at each sign of work."""
    any_status: bool = False
    """Whether a refusal is a reply, and no error."""


class RawReply(NamedTuple):
    """A server's reply as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def late_reply(reply: Coroutine[Any, Any, T], call: Call, in_flight: Callable[[], Awaitable[bool]]) -> T:
    """What `reply` returns; raises TimeoutError after `call.patience` without it or a sign that it is worked on.

    `in_flight` asks the server, and may take as long as it likes.
    """
    patience = call.patience
    clock = asyncio.get_running_loop().time
    task = asyncio.create_task(reply)
    try:
        deadline = clock() + patience
        while not await _done(task, patience / 2):
            if await _says_yes(in_flight, deadline - clock()):
                deadline = clock() + patience
                call.on_work()
                if call.deadline is not None:
                    call.deadline.reschedule(clock() + call.seconds)
            elif not await _done(task, deadline - clock()):
                raise TimeoutError
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _done(task: asyncio.Task[T], seconds: float) -> bool:
    return bool((await asyncio.wait({task}, timeout=max(0.0, seconds)))[0])


async def _says_yes(question: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await question()
    except TimeoutError:
        return False
