"""The clouds' sessions of answers that have ended: the next answer that begins as one of them did goes on with it."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.cloud_client.pool import Cloud
from common.cloud_client.split_session import SplitSession
from common.protocol.prefix_hash import common_prefix


@dataclass(frozen=True, slots=True, eq=False)
class KeptSession:
    """A session with `cloud` that was sent the states of `tokens`, of `tenant`; the cloud may have forgotten it."""

    cloud: Cloud
    session: SplitSession
    tokens: list[int]
    tenant: str


class KeptSessions:
    """Up to `limit` sessions whose states take up to `most_bytes`; used in the event loop.

    The least recently used are closed for a further one.
    """

    def __init__(self, limit: int, most_bytes: int) -> None:
        self._limit = limit
        self._most_bytes = most_bytes
        self._kept: list[KeptSession] = []
        """The least recently used first."""

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Size of the encoded states that the edge keeps of them all."""
        return sum(kept.session.nbytes for kept in self._kept)

    def take(self, prompt: Sequence[int], tenant: str) -> KeptSession | None:
        """That of this tenant which shares most with `prompt`, cut to that; None if it would lose more than it keeps.

        The last token of a prompt is never shared: its state is what a first question needs. Whoever takes a session
        must close it, or give it back.
        """
        wanted = list(prompt[:-1])
        shared = {each: common_prefix(each.tokens, wanted) for each in self._kept if each.tenant == tenant}
        kept = [each for each, length in shared.items() if length and 2 * length >= len(each.tokens)]
        fit = [each for each in kept if each.cloud.breaker.closed]
        if not fit:
            return None
        best = max(fit, key=lambda each: shared[each])
        self._kept.remove(best)
        keep = shared[best]
        return KeptSession(best.cloud, best.session.successor(keep), best.tokens[:keep], tenant)

    def give(self, kept: KeptSession) -> None:
        """Keeps a session of which no question is open."""
        self._kept.append(kept)
        while len(self._kept) > self._limit or self.bytes > self._most_bytes:
            self._kept.pop(0).session.close()

    def close(self) -> None:
        """Closes all of them."""
        while self._kept:
            self._kept.pop().session.close()
