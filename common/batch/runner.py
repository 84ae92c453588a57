"""Runs a batch: keeps a number of lines in flight, waits where a server has no room or is away, and goes on."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from common.batch.batch_input import BatchInput
from common.batch.batch_output import BatchOutput
from common.batch.lines import BatchFailure, BatchLine, BatchReply, BatchResult, result_of
from common.errors import EndpointError
from common.http.retry import Unreachable

MAX_ATTEMPTS = 5
"""Of a line that gets no reply, or one that blames a server: it may be the line that ends the server."""
LONGEST_PAUSE = 30.0
"""Seconds between two of them."""
FULL = 429
BROKEN = (408, 500, 502, 503, 504)
"""A reply with such a status says nothing of the line."""


@dataclass(frozen=True)
class Attempt:
    """What came of sending a line once. `retry_after`: the seconds that a full server asks to wait."""

    reply: BatchReply
    retry_after: float = 1.0


@dataclass(frozen=True)
class Refusal:
    """Until when a full server takes nothing, as a Unix time, and why."""

    until: float
    reason: str


class BatchTarget(Protocol):
    """Who answers a batch's lines."""

    async def ask(self, line: BatchLine) -> Attempt:
        """Raises Unreachable while there is nobody to ask, another EndpointError where the reply was lost."""

    async def wait_until_back(self) -> None:
        """Returns when there is somebody to ask again; raises EndpointError to give up."""


def pause_before_retry(status: int | None, retry_after: float, attempts: int) -> float | None:
    """Seconds until a line is sent again; None: what came of it is its result.

    `status` of the reply, None where none came. `attempts` so far that ended without a reply of use: a full server does
    not count, however long it is full.
    """
    if status == FULL:
        return retry_after
    if status is not None and status not in BROKEN:
        return None
    return min(2.0 ** (attempts - 1), LONGEST_PAUSE) if attempts < MAX_ATTEMPTS else None


class BatchRunner:
    """Sends the lines of `given` that have no result in `output` yet.

    `on_change` is called after each result, and with how many lines wait before they are sent again. Where a server
    asks to wait for longer than `patience` seconds, nothing more is sent.
    """

    def __init__(
        self,
        given: BatchInput,
        output: BatchOutput,
        target: BatchTarget,
        on_change: Callable[[int], None] = lambda _: None,
        patience: float = math.inf,
    ) -> None:
        self._given, self._output, self._target, self._on_change = given, output, target, on_change
        self._patience = patience
        self.refusal: Refusal | None = None
        """The one that has ended, or will end, last."""
        self._waiting = 0
        self._put_aside = 0.0
        self._reading = asyncio.Lock()
        self._read = deque[BatchLine]()
        """Lines that nobody has sent yet."""

    async def run(self, clients: int) -> float:
        """Returns when each line has a result, after at most `clients` were in flight at once: 0.

        Or, when those in flight have ended, the seconds to wait before the other lines are sent by another runner.

        Raises EndpointError when the target is given up, and ConfigError when the output cannot be written; what is
        finished by then is in the output.
        """
        left = self._given.lines(lambda index: not self._output.has(index))
        await self._read_some(left, clients)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(clients):
                    group.create_task(self._client(left, clients))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return self._put_aside

    async def _client(self, left: Iterator[BatchLine], clients: int) -> None:
        while not self._put_aside and (line := await self._next(left, clients)) is not None:
            if (result := await self._result(line)) is not None:
                self._output.add(line.index, result)
                self._on_change(self._waiting)

    async def _next(self, left: Iterator[BatchLine], clients: int) -> BatchLine | None:
        """The next line to send."""
        if not self._read:
            async with self._reading:
                await self._read_some(left, clients)
        return self._read.popleft() if self._read else None

    async def _read_some(self, left: Iterator[BatchLine], clients: int) -> None:
        """Reads a line for each client, in a thread: to skip what is finished takes seconds of a long input."""
        if not self._read:
            self._read.extend(await asyncio.to_thread(lambda: list(islice(left, clients))))

    async def _result(self, line: BatchLine) -> BatchResult | None:
        """None: it would have to wait for too long."""
        attempts = 0
        while True:
            status, after = None, 1.0
            try:
                attempt = await self._target.ask(line)
            except Unreachable:
                await self._wait(self._target.wait_until_back())
                continue
            except EndpointError as error:
                result = result_of(line, None, BatchFailure(error.code or "", error.message))
            else:
                status, after = attempt.reply.status_code, attempt.retry_after
                result = result_of(line, attempt.reply)
            attempts += status != FULL
            if (pause := pause_before_retry(status, after, attempts)) is None:
                return result
            if status == FULL:
                self._note_refusal(Refusal(time.time() + pause, attempt.reply.refusal))
            if status == FULL and (self._put_aside or pause > self._patience):
                self._put_aside = max(self._put_aside, pause)
                return None
            await self._wait(asyncio.sleep(pause))

    def _note_refusal(self, refusal: Refusal) -> None:
        if self.refusal is None or refusal.until > self.refusal.until:
            self.refusal = refusal

    async def _wait(self, wait: Awaitable[None]) -> None:
        self._waiting += 1
        self._on_change(self._waiting)
        try:
            await wait
        finally:
            self._waiting -= 1
