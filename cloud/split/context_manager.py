"""Holds the hidden states that edges have sent until the tail's KV holds their positions, session by session."""

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
    """Why a session's states, or its KV, were dropped."""

    CLOSED = "closed"
    IDLE = "idle"
    BYTES = "bytes"
    SESSIONS = "sessions"
    KV = "kv"
    """Its KV made room for another session's, or the engine was lost."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes of states of one session and of all together, seconds without use, number of sessions."""

    session_bytes: int = 16 * 2**20
    total_bytes: int = 2**30
    seconds: float = 60.0
    sessions: int = 4096


@dataclass(slots=True)
class SessionStates:
    """One session: positions before `released` are only in KV, those from there to before `held` in `pieces`, in order.

    `requests` counts its running token requests.
    """

    tenant: str
    used_at: float
    released: int = 0
    held: int = 0
    pieces: list[PackedStates] = field(default_factory=list)
    bytes: int = 0
    requests: int = 0


class CloudContextManager:
    """Holds states from their arrival until `release`; when memory runs out, drops the least recently used session.

    The edge of a dropped session only has to upload its states again. A session belongs to the tenant that opened it.
    Used from one event loop only.
    """

    def __init__(
        self,
        limits: Limits = Limits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_drop: Callable[[str], None] = lambda session: None
        """Called with each session whose positions are all forgotten, so that its KV can be freed, too."""
        self.bytes = 0
        """Size of the states held, over all sessions."""
        self.received = 0
        self.duplicates = 0
        self.dropped: Counter[EvictionReason] = Counter()
        self._limits = limits
        self._clock = clock
        self._sessions: OrderedDict[str, SessionStates] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, session: str, tenant: str = "") -> None:
        """Begins or continues `session`; raises ForeignSession, or OverloadedError if all sessions are in use."""
        self.expire()
        self.check_tenant(tenant, session)
        if session in self._sessions:
            self._touch(session)
            return
        if len(self._sessions) >= self._limits.sessions:
            self._drop_one(EvictionReason.SESSIONS, keep="", why="no room for another session")
        self._sessions[session] = SessionStates(tenant, self._clock())

    def check_tenant(self, tenant: str, *sessions: str) -> None:
        """Raises ForeignSession if one of those `sessions` that exist is another tenant's."""
        if any(self._sessions[each].tenant != tenant for each in sessions if each in self._sessions):
            raise ForeignSession("this session is not yours")

    def rename(self, session: str, to: str, keep: int) -> bool:
        """Makes `session` the session `to`, with its first `keep` positions; False if it cannot, or `to` exists."""
        self.expire()
        context = self._sessions.get(session)
        if context is None or context.requests or to in self._sessions:
            return False
        self._sessions[to] = self._sessions.pop(session)
        self._cut(context, keep)
        self._touch(to)
        return True

    def held(self, session: str) -> int:
        """How many positions, from 0 on, need not be sent again."""
        return self._sessions[session].held if session in self._sessions else 0

    def receive(self, session: str, start: int, states: PackedStates) -> None:
        """Keeps the new part of `states`, which are those of the positions from `start` on; ignores all after a gap.

        Raises RequestError when the session grows too large (it is then dropped), OverloadedError when other sessions
        in use have all the memory.
        """
        self.expire()
        context = self._sessions.get(session)
        if context is None or start > context.held:
            return  # the next token request will report what is missing
        self._touch(session)
        duplicate = min(context.held - start, len(states))
        self.duplicates += duplicate
        if duplicate == len(states):
            return
        if duplicate:
            states = states.rows(duplicate, len(states))
        self._make_room(session, context, states.nbytes)
        context.pieces.append(states)
        context.held += len(states)
        self._add(context, states.nbytes)
        self.received += len(states)

    def require(self, session: str, position: int) -> None:
        """Raises StatesMissing unless all positions before `position` are held, and the last one is not only in KV.

        If it is, its token was drawn before and cannot be drawn again: the session starts over from position 0.
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
        """The states before `position` that no KV holds, [n, hidden]; raises StatesMissing as `require` does."""
        self.require(session, position)
        context = self._sessions[session]
        rows = np.concatenate([piece.unpack() for piece in context.pieces])
        return rows[: position - context.released]

    @contextmanager
    def in_use(self, session: str) -> Iterator[None]:
        """Around a token request: its session is not dropped meanwhile for its age or for room."""
        context = self._sessions.get(session)
        if context is None:
            yield
            return
        context.requests += 1
        try:
            yield
        finally:
            context.requests -= 1
            context.used_at = self._clock()

    def release(self, session: str, position: int) -> None:
        """Drops the states before `position`, which the session's KV now holds."""
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
        """Call it when the session's KV is lost: if any states were released, all positions must be sent again."""
        context = self._sessions.get(session)
        if context is not None and context.released:
            self._empty(context)
            context.held = context.released = 0
            self.dropped[EvictionReason.KV] += 1
            self.on_drop(session)

    def close(self, session: str, why: EvictionReason = EvictionReason.CLOSED) -> None:
        """Drops the session, if it exists."""
        context = self._sessions.pop(session, None)
        if context is not None:
            self._empty(context)
            self.dropped[why] += 1
            self.on_drop(session)

    def expire(self) -> None:
        """Drops sessions that were not used for too long."""
        last = self._clock() - self._limits.seconds
        for session, context in list(self._sessions.items()):
            if context.used_at >= last:
                break
            if not context.requests:
                self.close(session, EvictionReason.IDLE)

    def _cut(self, context: SessionStates, keep: int) -> None:
        """Drops the states of all positions from `keep` on; those that only a KV holds count as dropped there, too."""
        while context.pieces and context.held > keep:
            last = context.pieces.pop()
            self._add(context, -last.nbytes)
            context.held -= len(last)
            if context.held < keep:
                context.pieces.append(rest := last.rows(0, keep - context.held))
                self._add(context, rest.nbytes)
                context.held = keep
        context.held = min(context.held, keep)
        context.released = min(context.released, keep)

    def _make_room(self, session: str, context: SessionStates, size: int) -> None:
        if context.bytes + size > self._limits.session_bytes:
            self.close(session, EvictionReason.BYTES)
            raise RequestError("this session's hidden states exceed cloud.split.session_bytes")
        while self.bytes + size > self._limits.total_bytes:
            self._drop_one(EvictionReason.BYTES, keep=session, why="no room for more hidden states")

    def _drop_one(self, reason: EvictionReason, keep: str, why: str) -> None:
        for session, context in self._sessions.items():
            if session != keep and not context.requests and (reason is EvictionReason.SESSIONS or context.bytes):
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
