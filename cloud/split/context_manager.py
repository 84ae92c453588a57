"""The hidden states that edges have sent and no KV holds yet, session by session. Knows no wire and no engine."""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from common.errors import ForeignSession, OverloadedError, RequestError, StatesMissing
from common.protocol.hidden_states import PackedStates


class EvictionReason(StrEnum):
    """Why a session's states, or its KV, are gone."""

    CLOSED = "closed"
    IDLE = "idle"
    BYTES = "bytes"
    SESSIONS = "sessions"
    KV = "kv"
    """The engine gave up its KV for others', or was lost."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What all sessions may hold: bytes of states each and together, seconds unused, their number."""

    session_bytes: int = 16 * 2**20
    total_bytes: int = 2**30
    seconds: float = 60.0
    sessions: int = 4096


@dataclass(slots=True)
class SessionStates:
    """One session: positions before `released` are in KV alone, those before `held` in `pieces`, in order."""

    tenant: str
    used_at: float
    released: int = 0
    held: int = 0
    pieces: list[PackedStates] = field(default_factory=list)
    bytes: int = 0
    asked: int = 0


class CloudContextManager:
    """Holds states from their arrival until `release`; the least recently used session goes first when bytes run out.

    A session that is gone costs its edge a new upload, no more. Sessions belong to the tenant that opened them.
    Used from one event loop only.
    """

    def __init__(
        self,
        limits: Limits = Limits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_drop: Callable[[str], None] = lambda session: None
        """Told of each session whose positions are all forgotten, so that its KV can go, too."""
        self.bytes = 0
        """Of states held, over all sessions."""
        self.received = 0
        self.duplicates = 0
        self.dropped: Counter[EvictionReason] = Counter()
        self._limits = limits
        self._clock = clock
        self._sessions: OrderedDict[str, SessionStates] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, session: str, tenant: str = "") -> None:
        """Begins `session`, or goes on with it; raises ForeignSession, or OverloadedError where all are in use."""
        self.expire()
        if (context := self._sessions.get(session)) is not None:
            if context.tenant != tenant:
                raise ForeignSession("this session is not yours")
            self._touch(session)
            return
        if len(self._sessions) >= self._limits.sessions:
            self._drop_one(EvictionReason.SESSIONS, but="", why="no room for another session")
        self._sessions[session] = SessionStates(tenant, self._clock())

    def held(self, session: str) -> int:
        """How many positions from 0 on need not be sent again."""
        return self._sessions[session].held if session in self._sessions else 0

    def receive(self, session: str, start: int, states: PackedStates) -> None:
        """Keeps what of `states`, of positions from `start` on, is new; nothing where it leaves a gap.

        Raises RequestError when the session grows too large (it is dropped), OverloadedError when others have all room.
        """
        self.expire()
        context = self._sessions.get(session)
        if context is None or start > context.held:
            return  # a question will say what is missing
        self._touch(session)
        known = min(context.held - start, len(states))
        self.duplicates += known
        if known == len(states):
            return
        if known:
            states = states.rows(known, len(states))
        self._make_room(session, context, states.nbytes)
        context.pieces.append(states)
        context.held += len(states)
        self._add(context, states.nbytes)
        self.received += len(states)

    def require(self, session: str, position: int) -> None:
        """Raises StatesMissing unless all positions before `position` are here or in KV, the last of them here.

        A token that was drawn already cannot be drawn again: its session begins anew.
        """
        self.expire()
        context = self._sessions.get(session)
        if context is not None and position <= context.released:
            self.forget(session)
        held = context.held if context else 0
        if position > held:
            raise StatesMissing(f"of {position} positions the cloud holds {held}", held)
        self._touch(session)

    def states(self, session: str, position: int) -> NDArray[np.float32]:
        """Those before `position` that no KV holds, [n, hidden]; raises StatesMissing as `require` does."""
        self.require(session, position)
        context = self._sessions[session]
        rows = np.concatenate([piece.unpack() for piece in context.pieces])
        return rows[: position - context.released]

    @contextmanager
    def in_use(self, session: str) -> Iterator[None]:
        """Around a question: neither time nor want of room ends its session meanwhile."""
        context = self._sessions.get(session)
        if context is None:
            yield
            return
        context.asked += 1
        try:
            yield
        finally:
            context.asked -= 1
            context.used_at = self._clock()

    def release(self, session: str, position: int) -> None:
        """Forgets the states before `position`, which the session's KV now holds."""
        context = self._sessions.get(session)
        if context is None:
            return
        self._touch(session)
        while context.pieces and context.released < position:
            first = context.pieces.pop(0)
            self._add(context, -first.nbytes)
            done = min(len(first), position - context.released)
            context.released += done
            if done < len(first):
                context.pieces.insert(0, rest := first.rows(done, len(first)))
                self._add(context, rest.nbytes)

    def forget(self, session: str) -> None:
        """The session's KV is gone: unless nothing was released, all its positions must come again."""
        context = self._sessions.get(session)
        if context is not None and context.released:
            self._empty(context)
            context.held = context.released = 0
            self.dropped[EvictionReason.KV] += 1
            self.on_drop(session)

    def close(self, session: str, why: EvictionReason = EvictionReason.CLOSED) -> None:
        """Forgets the session, if it is there."""
        context = self._sessions.pop(session, None)
        if context is not None:
            self._empty(context)
            self.dropped[why] += 1
            self.on_drop(session)

    def expire(self) -> None:
        """Closes what was not used for too long."""
        last = self._clock() - self._limits.seconds
        for session, context in list(self._sessions.items()):
            if context.used_at >= last:
                break
            if not context.asked:
                self.close(session, EvictionReason.IDLE)

    def _make_room(self, session: str, context: SessionStates, size: int) -> None:
        if context.bytes + size > self._limits.session_bytes:
            self.close(session, EvictionReason.BYTES)
            raise RequestError("more hidden states than cloud.split.session_bytes lets a session hold")
        while self.bytes + size > self._limits.total_bytes:
            self._drop_one(EvictionReason.BYTES, but=session, why="no room for more hidden states")

    def _drop_one(self, reason: EvictionReason, but: str, why: str) -> None:
        for session, context in self._sessions.items():
            if session != but and not context.asked and (reason is EvictionReason.SESSIONS or context.bytes):
                self.close(session, reason)
                return
        raise OverloadedError(why)

    def _touch(self, session: str) -> None:
        self._sessions[session].used_at = self._clock()
        self._sessions.move_to_end(session)

    def _add(self, context: SessionStates, size: int) -> None:
        context.bytes += size
        self.bytes += size

    def _empty(self, context: SessionStates) -> None:
        self._add(context, -context.bytes)
        context.pieces.clear()
