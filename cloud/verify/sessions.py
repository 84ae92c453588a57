"""Holds the committed token ids of each session, so that edges need not send them again."""

import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from common.errors import PrefixUnknown
from common.protocol.prefix_hash import prefix_hash
from common.types import VerifyRequest


class SessionPrefix(NamedTuple):
    """A session's committed token ids, and when it was last used."""

    token_ids: "array[int]"
    used_at: float


NOTHING = SessionPrefix(array("i"), 0.0)


class SessionTable:
    """Bounded in sessions, bytes of token ids and seconds without use; drops the least recently used sessions first.

    The edge of a dropped session sends its whole prefix again. Tenants do not see each other's sessions. Used from one
    event loop only.
    """

    def __init__(
        self,
        max_sessions: int = 4096,
        max_bytes: int = 64 * 2**20,
        max_idle_seconds: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_sessions = max_sessions
        self._max_bytes = max_bytes
        self._max_idle_seconds = max_idle_seconds
        self._clock = clock
        self._sessions: OrderedDict[tuple[str, str], SessionPrefix] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def bytes(self) -> int:
        """Bytes of token ids held, over all sessions."""
        return self._bytes

    def resolve(self, request: VerifyRequest, tenant: str = "") -> list[int]:
        """The committed token ids of `request`, its prefix included; raises PrefixUnknown if the prefix is not held."""
        if not request.prefix_length:
            return list(request.new_token_ids)
        self._drop_idle()
        held = self._sessions.get((tenant, request.session), NOTHING)
        prefix = held.token_ids[: request.prefix_length]
        if len(prefix) != request.prefix_length or prefix_hash(prefix) != request.prefix_hash:
            raise PrefixUnknown(f"this session's prefix of {request.prefix_length} tokens is not held here")
        self._sessions[tenant, request.session] = SessionPrefix(held.token_ids, self._clock())
        self._sessions.move_to_end((tenant, request.session))
        return prefix.tolist() + request.new_token_ids

    def commit(self, session: str, token_ids: Sequence[int], tenant: str = "") -> None:
        """Holds `token_ids` as the whole sequence of `session`, in place of its earlier one."""
        self._drop(tenant, session)
        held = SessionPrefix(array("i", token_ids), self._clock())
        self._sessions[tenant, session] = held
        self._bytes += _size(held)
        self._drop_idle()
        while len(self._sessions) > self._max_sessions or self._bytes > self._max_bytes:
            self._drop(*next(iter(self._sessions)))

    def _drop_idle(self) -> None:
        last = self._clock() - self._max_idle_seconds
        while self._sessions and next(iter(self._sessions.values())).used_at < last:
            self._drop(*next(iter(self._sessions)))

    def _drop(self, tenant: str, session: str) -> None:
        self._bytes -= _size(self._sessions.pop((tenant, session), NOTHING))


def _size(held: SessionPrefix) -> int:
    return len(held.token_ids) * held.token_ids.itemsize
