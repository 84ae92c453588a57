"""The interface of a store that keeps KV for later requests, and the default one, which only knows live sequences."""

from collections.abc import Sequence
from typing import Protocol

from common.protocol.prefix_hash import common_prefix
from edge.llama.model import Llama


class HeldTokens(Protocol):
    """Who holds what: the part of `edge.llama.model.Llama` from which `reusable` tells."""

    held: list[list[int]]
    owners: list[str]
    """The tenant of each sequence's tokens."""

    def reusable(self, sequence: int, length: int) -> int: ...


def reusable(llama: HeldTokens, sequence: int, wanted: list[int], tenant: str) -> int:
    """How many tokens of `sequence` a request of `tenant` for `wanted` can reuse: none of another tenant's."""
    if llama.owners[sequence] != tenant:
        return 0
    return llama.reusable(sequence, common_prefix(llama.held[sequence], wanted))


class PrefixStore(Protocol):
    """Finds the KV of tokens that were decoded before, for the same tenant: a hit shows what someone has asked.

    `llama.owners` names the tenant of what each sequence holds. Called in the engine's thread, except for `stats`.
    """

    def restore(self, llama: Llama, sequence: int, token_ids: Sequence[int], tenant: str = "") -> int:
        """Makes `sequence` hold the longest prefix of `token_ids` that is known of `tenant`, and nothing else.

        Returns its length. Called before a prefill, once per lease. The store may keep what `sequence` held before and
        loses.
        """
        ...

    def release(self, llama: Llama, sequence: int) -> None:
        """The lease on `sequence` has ended: other requests may reuse what it holds."""
        ...

    def save(self, llama: Llama, sequence: int) -> None:
        """Last moment to keep what `sequence` holds: a request without reuse is about to overwrite it."""
        ...

    def close(self, llama: Llama) -> None:
        """The engine stops: last moment to keep what all sequences hold; no other call follows."""
        ...

    def stats(self, tenant: str | None = None) -> dict[str, int]:
        """Counters and sizes by name, of one tenant or (None) of all; called from any thread."""
        ...


class LiveSequences:
    """A prefix store without memory of its own: copies the longest prefix that a live sequence holds."""

    def restore(self, llama: Llama, sequence: int, token_ids: Sequence[int], tenant: str = "") -> int:
        wanted = list(token_ids)
        lengths = [reusable(llama, each, wanted, tenant) for each in range(llama.sequences)]
        longest = max(range(llama.sequences), key=lambda each: (lengths[each], each == sequence))
        llama.copy(longest, sequence, lengths[longest])
        return len(llama.held[sequence])

    def release(self, llama: Llama, sequence: int) -> None:
        return

    def save(self, llama: Llama, sequence: int) -> None:
        return

    def close(self, llama: Llama) -> None:
        return

    def stats(self, tenant: str | None = None) -> dict[str, int]:
        return {}
