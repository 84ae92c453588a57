"""The live vLLM requests of sessions: bounded in number and KV blocks, closed when idle.

A live request that waits for its next round holds one of vLLM's places (`max_num_seqs`) and KV blocks that vLLM cannot
take back. If live requests held all of either, every other request would wait forever.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from contextlib import nullcontext
from enum import StrEnum

from cloud.engine.engine import CloudEngine
from cloud.verify.live_request import LiveRequest, can_reside
from cloud.verify.round import VerifyRound
from common.errors import EngineError
from common.fair_queue import Turn
from common.types import Verdict

GRACE_SECONDS = 1.0
"""A session counts as idle only after this time: else sessions that take turns would close each other's requests."""


class CloseReason(StrEnum):
    """Why a live request ended."""

    IDLE = "idle"
    ROOM = "room"
    MISMATCH = "mismatch"
    """The next round did not extend what the request held."""
    ENGINE = "engine"
    FINISHED = "finished"
    LEFT = "left"
    """The client left, or the round was refused."""
    ASKED = "asked"


def block_budget(blocks: int, longest: int) -> int:
    """The KV blocks that live requests may hold: at most half of `blocks`, and so that `longest` blocks stay free."""
    return max(0, min(blocks // 2, blocks - longest))


def blocks_for(tokens: int, block_size: int, max_model_len: int) -> int:
    """The KV blocks that vLLM allocates to a request of `tokens`."""
    return -(-min(tokens, max_model_len) // block_size)


class ResidentPool:
    """At most `limit` live requests of `engine`, each closed after `idle_seconds` without a round.

    `turn` is entered around what the engine computes for a round.

    Owns them, the task that closes idle ones, and the tasks in which they end. Used from one event loop only.
    """

    def __init__(self, engine: CloudEngine, limit: int, idle_seconds: float, turn: Turn = nullcontext) -> None:
        self.opened = 0
        self.continued = 0
        self.closed: Counter[CloseReason] = Counter()
        self._engine = engine
        self._limit = limit
        self._idle_seconds = idle_seconds
        self._turn = turn
        self._live: OrderedDict[str, LiveRequest] = OrderedDict()  # least recently used first
        self._ending: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._live)

    async def verify(self, session: str, round: VerifyRound) -> Verdict | None:
        """One round in the live request of `session`, which is started if there is room.

        None: the round needs a request of its own, for want of room, because another round of the session is running,
        because a live request would not draw the same, or because the engine lost it. Cancelling this ends the live
        request. Raises ContextLengthError or RequestError.
        """
        live = self._live.get(session)
        if not can_reside(round) or (live and live.busy):
            return None
        if live and not live.extends(round):
            self._end(session, CloseReason.MISMATCH)
            live = None
        if not self._make_room(session, round):
            self._end(session, CloseReason.ROOM)
            return None
        if live:
            self.continued += 1
        else:
            live = LiveRequest(self._engine, round)
            self.opened += 1
        return await self._round(session, live, round)

    async def close_session(self, session: str) -> None:
        """Ends the live request of `session`, if there is one; a running round still gets its verdict."""
        self._end(session, CloseReason.ASKED)
        await self._wait_closed()

    async def close(self) -> None:
        """Ends all live requests."""
        if self._sweeper:
            self._sweeper.cancel()
        self._end_all(CloseReason.ASKED)
        await self._wait_closed()

    async def _round(self, session: str, live: LiveRequest, round: VerifyRound) -> Verdict | None:
        self._live[session] = live
        self._live.move_to_end(session)
        live.busy = True  # also while it waits for its turn: it is not idle then
        try:
            async with self._turn():
                verdict = await live.verify(round)
        except EngineError:
            self._end_all(CloseReason.ENGINE)  # lost with the engine, whose state a stateless request reports
            return None
        except BaseException:
            self._end(session, CloseReason.LEFT)
            raise
        finally:
            live.busy = False
            if self._live.get(session) is not live:
                self._close(live)
        if verdict.finish_reason:
            self._end(session, CloseReason.FINISHED)
        elif not self._sweeper or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep())
        return verdict

    def _make_room(self, session: str, round: VerifyRound) -> bool:
        """Ends idle requests, least recently used first, until `round` fits beside the others; False if it cannot."""
        need, budget = self._blocks(len(round.committed)), self._budget()
        others = {name: self._blocks(len(live.held) + 1) for name, live in self._live.items() if name != session}
        idle = [name for name in others if self._idle_for(name) >= GRACE_SECONDS]
        while len(others) >= self._limit or need + sum(others.values()) > budget:
            if not idle or need > budget:
                return False
            del others[idle[0]]
            self._end(idle.pop(0), CloseReason.ROOM)
        return True

    def _budget(self) -> int:
        engine = self._engine
        longest = blocks_for(engine.max_model_len, engine.block_size, engine.max_model_len)
        return block_budget(engine.kv_blocks, longest)

    def _blocks(self, committed: int) -> int:
        """The maximum of KV blocks during a round on `committed` tokens, with slots for two of the longest drafts.

        One is the scheduler's lookahead, the other vLLM's padding of requests with one new token.
        """
        engine = self._engine
        return blocks_for(committed + 2 * engine.max_draft_tokens, engine.block_size, engine.max_model_len)

    def _idle_for(self, session: str) -> float:
        live = self._live[session]
        return 0.0 if live.busy else time.monotonic() - live.used_at

    async def _sweep(self) -> None:
        """Ends idle live requests; returns after the last one."""
        while self._live:
            idle = {session: self._idle_for(session) for session in self._live}
            for session in idle:
                if idle[session] >= self._idle_seconds:
                    self._end(session, CloseReason.IDLE)
            await asyncio.sleep(max(0.05, self._idle_seconds - max(idle.values())))

    def _end_all(self, reason: CloseReason) -> None:
        for session in list(self._live):
            self._end(session, reason)

    def _end(self, session: str, reason: CloseReason) -> None:
        """Removes and closes the live request of `session`, if any; during a round it is closed at the round's end."""
        live = self._live.pop(session, None)
        if live:
            self.closed[reason] += 1
            if not live.busy:
                self._close(live)

    def _close(self, live: LiveRequest) -> None:
        """Closes in a task of its own, because the caller may be cancelled meanwhile."""
        task = asyncio.create_task(live.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _wait_closed(self) -> None:
        await asyncio.gather(*self._ending)
