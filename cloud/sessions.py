"""The prefixes that edges need not send again: session -> committed token ids. Knows nothing of engines or HTTP."""

from collections import OrderedDict
from collections.abc import Sequence

from common.errors import PrefixUnknown
from common.session import prefix_hash
from common.types import VerifyRequest


class SessionTable:
    """At most `max_sessions` sessions holding at most `max_tokens` ids in all; the least recently used go first.

    Losing a session loses nothing: its edge resends the whole prefix. Used from one event loop only.
    """

    def __init__(self, max_sessions: int = 1024, max_tokens: int = 4 * 2**20) -> None:
        self._max_sessions = max_sessions
        self._max_tokens = max_tokens
        self._sessions: OrderedDict[str, list[int]] = OrderedDict()
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def tokens(self) -> int:
        """Ids held, over all sessions."""
        return self._tokens

    def resolve(self, request: VerifyRequest) -> list[int]:
        """The committed ids that `request` stands for; raises PrefixUnknown if its prefix is not held here."""
        if not request.prefix_length:
            return list(request.new_token_ids)
        held = self._sessions.get(request.session, [])
        prefix = held[: request.prefix_length]
        if len(prefix) != request.prefix_length or prefix_hash(prefix) != request.prefix_hash:
            raise PrefixUnknown(f"session {request.session!r}: this prefix of {request.prefix_length} is not held here")
        self._sessions.move_to_end(request.session)
        return prefix + request.new_token_ids

    def commit(self, session: str, token_ids: Sequence[int]) -> None:
        """Hold `token_ids` as the whole sequence of `session`, in place of what it held."""
        self._tokens += len(token_ids) - len(self._sessions.pop(session, ()))
        self._sessions[session] = list(token_ids)
        while len(self._sessions) > self._max_sessions or self._tokens > self._max_tokens:
            _, dropped = self._sessions.popitem(last=False)
            self._tokens -= len(dropped)
