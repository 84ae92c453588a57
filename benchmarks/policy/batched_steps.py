"""An engine in virtual time whose steps take all sequences that wait, as those of the cloud and of the edge do."""

import asyncio
from typing import NamedTuple

MOMENT = 1e-9
"""Seconds before a step begins: whoever asks at the same time, as after the end of a step, is in it."""


class _Waiting(NamedTuple):
    tokens: int
    reading: float
    done: asyncio.Future[None]


class BatchedSteps:
    """A step takes `first` seconds for one token, and `more` for every other one, of whichever sequence."""

    def __init__(self, first: float, more: float) -> None:
        self._first, self._more = first, more
        self._waiting: list[_Waiting] = []
        self._busy = False

    async def run(self, tokens: int, reading: float = 0.0) -> None:
        """Waits for the end of a step that computes `tokens` of one sequence, and reads its prompt in so many seconds.

        A caller that is cancelled before the step begins is not in it.
        """
        clock = asyncio.get_running_loop()
        waiting = _Waiting(tokens, reading, clock.create_future())
        self._waiting.append(waiting)
        if not self._busy:
            self._busy = True
            clock.call_later(MOMENT, self._begin)
        await waiting.done

    def _begin(self) -> None:
        batch = [one for one in self._waiting if not one.done.done()]
        self._waiting = []
        self._busy = bool(batch)
        if batch:
            tokens = sum(one.tokens for one in batch)
            seconds = self._first + self._more * (tokens - 1) + sum(one.reading for one in batch)
            asyncio.get_running_loop().call_later(seconds, self._end, batch)

    def _end(self, batch: list[_Waiting]) -> None:
        for one in batch:
            if not one.done.done():
                one.done.set_result(None)
        asyncio.get_running_loop().call_later(MOMENT, self._begin)
