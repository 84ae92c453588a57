"""The live requests in the tail's engine, one a session, bounded so that their KV always fits.

A live request holds KV blocks and one of vLLM's places (`max_num_seqs`) while its edge computes, and vLLM does not take
them back: requests that need each other's blocks would wait forever. So no more are admitted than fit, and the least
recently used idle one is ended to make room.
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
"""KV blocks that vLLM keeps for itself."""


@dataclass(slots=True)
class Seat:
    """A session's live request, with the KV blocks that it may use; it must not be ended while `running`."""

    request: TailRequest
    blocks: int
    running: bool = True
    last: tuple[int, Sampling, int, Drawn] | None = None
    """Position, sampling, alternatives and token of the last request, for an edge that repeats it because the answer
    was lost."""


class TailPool:
    """Draws tokens, of one session in order and of different sessions at once. Used from one event loop only.

    Owns the live requests and the tasks in which they end. A session that `contexts` drops loses its live request.
    """

    def __init__(self, engine: TailEngine, contexts: CloudContextManager) -> None:
        self.drawn = 0
        self.computed = 0
        """Positions that the tail has computed for all tokens; `cached` counts those whose KV it already held."""
        self.cached = 0
        self.seconds = 0.0
        """From request to token, waiting for room included, summed over all tokens."""
        self._engine = engine
        self._contexts = contexts
        self._seats: OrderedDict[str, Seat] = OrderedDict()  # least recently used first
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._blocks: dict[TailRequest, int] = {}
        """KV blocks of every live request that vLLM may still hold."""
        self._ending: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Condition()
        contexts.on_drop = self._end

    def __len__(self) -> int:
        return len(self._seats)

    def resume(self, session: str, parent: str, keep: int, tenant: str = "") -> None:
        """Makes `session` hold the first `keep` positions (>= 1) of `parent`, which ends, as far as they are held.

        Does nothing if `session` exists. Raises ForeignSession if one of them is another tenant's.
        """
        self._contexts.check_tenant(tenant, parent, session)
        seat = self._seats.get(parent)
        if seat and (seat.running or (keep < seat.request.computed and not self._engine.rewinds)):
            self._contexts.close(parent)
        if self._contexts.rename(parent, session, keep) and (seat := self._seats.pop(parent, None)):
            seat.request.rewind(keep)
            seat.last = None
            self._seats[session] = seat

    async def token(self, session: str, position: int, sampling: Sampling, top: int = 0) -> Drawn:
        """The token after the session's first `position` positions; cancelling this drops the session's KV.

        `top`: how many of the likeliest tokens it is to name.

        Raises StatesMissing, another RequestError, or EngineError.
        """
        began = time.perf_counter()
        turn = self._turns.setdefault(session, asyncio.Lock())
        async with turn:
            seat = self._seats.get(session)
            if seat and seat.last and seat.last[:3] == (position, sampling, top):
                return seat.last[3]
            params = self._engine.params(position, sampling, top)
            with self._contexts.in_use(session):
                self._contexts.require(session, position)
                seat = await self._acquire(session, position)
                try:
                    drawn = await seat.request.token(self._contexts.states(session, position), params)
                except BaseException:
                    self._contexts.forget(session)
                    self._end(session)
                    raise
                finally:
                    seat.running = False
                    if self._seats.get(session) is not seat:  # closed meanwhile, and perhaps opened again
                        self._close(seat)
                    else:
                        self._contexts.release(session, position)
                    await self._notify()
        seat.last = position, sampling, top, drawn
        self.drawn += 1
        self.computed += drawn.computed
        self.cached += drawn.cached
        self.seconds += time.perf_counter() - began
        return drawn

    def drop_all(self) -> None:
        """Ends all live requests and drops their sessions' KV; also called when the engine, and all KV, is lost."""
        for session in list(self._seats):
            self._contexts.forget(session)
            self._end(session)

    async def close(self) -> None:
        """Ends all live requests."""
        self.drop_all()
        await asyncio.gather(*self._ending)

    async def _acquire(self, session: str, position: int) -> Seat:
        """The session's live request, marked as running, once there is room for `position` positions and the token."""
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
        seat.blocks = max(seat.blocks, need)  # one that went back still has all its blocks
        seat.running, self._blocks[seat.request] = True, seat.blocks
        return seat

    def _fits(self, session: str, need: int, budget: int) -> bool:
        mine = self._seats.get(session)
        others = [blocks for request, blocks in self._blocks.items() if not mine or request is not mine.request]
        need = max(need, mine.blocks if mine else 0)
        return len(others) < self._engine.max_num_seqs and need + sum(others) <= budget

    def _evict_one(self, session: str) -> None:
        for other, seat in self._seats.items():
            if other != session and not seat.running:
                self._contexts.forget(other)
                self._end(other)
                return

    def _end(self, session: str) -> None:
        """Ends the session's live request, if it has one; a running one ends after its token."""
        seat = self._seats.pop(session, None)
        if seat and not seat.running:
            self._close(seat)

    def _close(self, seat: Seat) -> None:
        """Closes in a task of its own, because the caller may be cancelled meanwhile."""
        task = asyncio.create_task(self._release(seat))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _release(self, seat: Seat) -> None:
        with suppress(EngineError):
            await seat.request.close()
        del self._blocks[seat.request]
        await self._notify()

    async def _notify(self) -> None:
        async with self._freed:
            self._freed.notify_all()
