"""The sessions that have a live vLLM request: a bounded number, closed when idle. Knows nothing of wires or prefixes.

A live request that waits for its next round holds one of vLLM's places (`max_num_seqs`) and KV blocks that vLLM cannot
take back: were all of either held so, every request would wait for ever. So both are bounded here.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from enum import StrEnum

from cloud.engine.engine import CloudEngine
from cloud.verify.live_request import LiveRequest, can_reside
from cloud.verify.round import VerifyRound
from common.errors import EngineError
from common.types import Verdict

GRACE_SECONDS = 1.0
"""A session is not taken for idle between two rounds: that would close every one of many that take turns."""


class Closed(StrEnum):
    """Why a live request ended."""

    IDLE = "idle"
    ROOM = "room"
    MISMATCH = "mismatch"
    """Its next round did not extend what it held."""
    ENGINE = "engine"
    FINISHED = "finished"
    LEFT = "left"
    """Its client left, or its round was wrong."""
    ASKED = "asked"


def default_limit(max_num_seqs: int) -> int:
    """How many live requests leave an engine three of four of its places."""
    return max_num_seqs // 4


def block_budget(blocks: int, longest: int) -> int:
    """How many of the engine's KV blocks live requests may hold: half, and what is left fits the `longest` request."""
    return max(0, min(blocks // 2, blocks - longest))


def blocks_for(tokens: int, block_size: int, max_model_len: int) -> int:
    """The blocks that vLLM gives a request of `tokens`."""
    return -(-min(tokens, max_model_len) // block_size)


class ResidentPool:
    """At most `limit` live requests of `engine`, each closed after `idle_seconds` without a round.

    Owns them, the task that closes idle ones, and the tasks in which they end. Used from one event loop only.
    """

    def __init__(self, engine: CloudEngine, limit: int, idle_seconds: float) -> None:
        self.opened = 0
        self.continued = 0
        self.closed: Counter[Closed] = Counter()
        self._engine = engine
        self._limit = limit
        self._idle_seconds = idle_seconds
        self._live: OrderedDict[str, LiveRequest] = OrderedDict()  # least recently used first
        self._ending: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._live)

    async def verify(self, session: str, asked: VerifyRound) -> Verdict | None:
        """One round in the live request of `session`, which begins if there is room; None: it must go stateless.

        So must a second round at the same time, and one whose live request its engine has lost. Cancelling this ends
        the live request. Raises ContextLengthError or RequestError.
        """
        live = self._live.get(session)
        if not can_reside(asked) or (live and live.busy):
            return None
        if live and not live.extends(asked):
            self._end(session, Closed.MISMATCH)
            live = None
        if not self._make_room(session, asked):
            self._end(session, Closed.ROOM)
            return None
        if live:
            self.continued += 1
        else:
            live = LiveRequest(self._engine, asked)
            self.opened += 1
        return await self._round(session, live, asked)

    async def close_session(self, session: str) -> None:
        """End the live request of `session`, if there is one; a round under way still gets its verdict."""
        self._end(session, Closed.ASKED)
        await self._ended()

    async def close(self) -> None:
        """End all of them; does nothing to an empty pool."""
        if self._sweeper:
            self._sweeper.cancel()
        self._end_all(Closed.ASKED)
        await self._ended()

    async def _round(self, session: str, live: LiveRequest, asked: VerifyRound) -> Verdict | None:
        self._live[session] = live
        self._live.move_to_end(session)
        live.busy = True
        try:
            verdict = await live.verify(asked)
        except EngineError:
            self._end_all(Closed.ENGINE)  # they were of the same engine; the stateless form says what became of it
            return None
        except BaseException:
            self._end(session, Closed.LEFT)
            raise
        finally:
            live.busy = False
            if self._live.get(session) is not live:
                self._close(live)
        if verdict.finished:
            self._end(session, Closed.FINISHED)
        elif not self._sweeper or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep())
        return verdict

    def _make_room(self, session: str, asked: VerifyRound) -> bool:
        """End idle ones, least recently used first, until `asked` fits beside the others; False if it cannot."""
        need, budget = self._blocks(len(asked.committed)), self._budget()
        others = {name: self._blocks(len(live.held) + 1) for name, live in self._live.items() if name != session}
        idle = [name for name in others if self._idle_for(name) >= GRACE_SECONDS]
        while len(others) >= self._limit or need + sum(others.values()) > budget:
            if not idle or need > budget:
                return False
            del others[idle[0]]
            self._end(idle.pop(0), Closed.ROOM)
        return True

    def _budget(self) -> int:
        engine = self._engine
        longest = blocks_for(engine.max_model_len, engine.block_size, engine.max_model_len)
        return block_budget(engine.kv_blocks, longest)

    def _blocks(self, committed: int) -> int:
        """The most blocks that a round on `committed` tokens makes vLLM hold, with slots for two of the longest drafts.

        One is the scheduler's lookahead, the other vLLM's padding of requests that bring one token.
        """
        engine = self._engine
        return blocks_for(committed + 2 * engine.max_draft_tokens, engine.block_size, engine.max_model_len)

    def _idle_for(self, session: str) -> float:
        live = self._live[session]
        return 0.0 if live.busy else time.monotonic() - live.used_at

    async def _sweep(self) -> None:
        """Ends with the last live request."""
        while self._live:
            idle = {session: self._idle_for(session) for session in self._live}
            for session in idle:
                if idle[session] >= self._idle_seconds:
                    self._end(session, Closed.IDLE)
            await asyncio.sleep(max(0.05, self._idle_seconds - max(idle.values())))

    def _end_all(self, reason: Closed) -> None:
        for session in list(self._live):
            self._end(session, reason)

    def _end(self, session: str, reason: Closed) -> None:
        """Forget the live request of `session`, if any, and close it; a round under way closes it when it is over."""
        live = self._live.pop(session, None)
        if live:
            self.closed[reason] += 1
            if not live.busy:
                self._close(live)

    def _close(self, live: LiveRequest) -> None:
        """In a task of its own: whoever caused it may be cancelled meanwhile."""
        task = asyncio.create_task(live.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _ended(self) -> None:
        await asyncio.gather(*self._ending)
