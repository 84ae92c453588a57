"""Which sessions have a live request in the tail's engine, and what these may hold. Knows no wire.

A live request holds KV blocks and one of vLLM's places while its edge thinks, and vLLM does not take them back:
requests that need each other's would wait for ever. So no more is let in than fits, and the least recently used that is
idle makes room.
"""

import asyncio
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from weakref import WeakValueDictionary

from cloud.split.context_manager import CloudContextManager
from cloud.split.engine import Drawn, TailEngine, TailRequest
from cloud.verify.resident_pool import blocks_for
from common.errors import ContextLengthError, EngineError
from common.types import Sampling

SPARE_BLOCKS = 1
"""Of the KV cache; vLLM keeps one for itself."""


@dataclass(slots=True)
class Seat:
    """A session's live request. Only while it is `running` may it not be ended."""

    request: TailRequest
    blocks: int
    running: bool = True
    last: tuple[int, Sampling, Drawn] | None = None
    """What was asked and drawn last, for an edge that asks again because the answer did not reach it."""


class TailPool:
    """Answers questions, of one session in their order and of different sessions at once. Used from one event loop.

    Owns the live requests and the tasks in which they end. What `contexts` drops loses its live request, too.
    """

    def __init__(self, engine: TailEngine, contexts: CloudContextManager) -> None:
        self.drawn = 0
        self.computed = 0
        """Positions that the tail has computed for tokens drawn; `cached` are those whose KV it had."""
        self.cached = 0
        self.seconds = 0.0
        """From question to token, over all tokens drawn; waiting for room is in them."""
        self._engine = engine
        self._contexts = contexts
        self._seats: OrderedDict[str, Seat] = OrderedDict()  # least recently used first
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._blocks: dict[TailRequest, int] = {}
        """Of every live request that vLLM may still know."""
        self._ending: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Condition()
        contexts.on_drop = self._end

    def __len__(self) -> int:
        return len(self._seats)

    async def token(self, session: str, position: int, sampling: Sampling) -> Drawn:
        """The token after the session's first `position` positions; cancelling this forgets the session's KV.

        Raises StatesMissing, RequestError (or another child) or EngineError.
        """
        began = time.perf_counter()
        turn = self._turns.setdefault(session, asyncio.Lock())
        async with turn:
            seat = self._seats.get(session)
            if seat and seat.last and seat.last[:2] == (position, sampling):
                return seat.last[2]
            params = self._engine.params(position, sampling)
            with self._contexts.in_use(session):
                self._contexts.require(session, position)
                seat = await self._seated(session, position)
                try:
                    drawn = await seat.request.token(self._contexts.states(session, position), params)
                except BaseException:
                    self._contexts.forget(session)
                    self._end(session)
                    raise
                finally:
                    seat.running = False
                    if self._seats.get(session) is not seat:  # closed meanwhile, perhaps opened again
                        self._close(seat)
                    else:
                        self._contexts.release(session, position)
                    await self._tell()
        seat.last = position, sampling, drawn
        self.drawn += 1
        self.computed += drawn.computed
        self.cached += drawn.cached
        self.seconds += time.perf_counter() - began
        return drawn

    def lost(self) -> None:
        """The engine is gone, and all KV with it."""
        for session in list(self._seats):
            self._contexts.forget(session)
            self._end(session)

    async def close(self) -> None:
        """Ends all live requests."""
        self.lost()
        await asyncio.gather(*self._ending)

    async def _seated(self, session: str, position: int) -> Seat:
        """The session's live request, running, with room for `position` positions and the token."""
        engine = self._engine
        need = blocks_for(position + 1, engine.block_size, engine.max_model_len)
        budget = engine.kv_blocks - SPARE_BLOCKS
        if need > budget:
            raise ContextLengthError(f"{position} positions do not fit the KV cache of the cloud's tail")
        async with self._freed:
            while not self._fits(session, need, budget):
                self._evict_one(session)
                await self._freed.wait()
        seat = self._seats.get(session)
        if seat is None:
            seat = self._seats[session] = Seat(TailRequest(engine), need)
        self._seats.move_to_end(session)
        seat.running, seat.blocks, self._blocks[seat.request] = True, need, need
        return seat

    def _fits(self, session: str, need: int, budget: int) -> bool:
        mine = self._seats.get(session)
        others = [blocks for request, blocks in self._blocks.items() if not mine or request is not mine.request]
        return len(others) < self._engine.max_num_seqs and need + sum(others) <= budget

    def _evict_one(self, session: str) -> None:
        for other, seat in self._seats.items():
            if other != session and not seat.running:
                self._contexts.forget(other)
                self._end(other)
                return

    def _end(self, session: str) -> None:
        """Ends the session's live request, if it has one; one that is running ends when its token is there."""
        seat = self._seats.pop(session, None)
        if seat and not seat.running:
            self._close(seat)

    def _close(self, seat: Seat) -> None:
        """In a task of its own: whoever caused it may be cancelled meanwhile."""
        task = asyncio.create_task(self._closed(seat))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _closed(self, seat: Seat) -> None:
        with suppress(EngineError):
            await seat.request.close()
        del self._blocks[seat.request]
        await self._tell()

    async def _tell(self) -> None:
        async with self._freed:
            self._freed.notify_all()
