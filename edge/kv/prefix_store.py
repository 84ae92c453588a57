"""The interface of a store that keeps KV for later requests, and the default one, which only knows live sequences."""

from collections.abc import Sequence
from typing import Protocol

from common.protocol.prefix_hash import common_prefix
from edge.llama.model import Llama


class PrefixStore(Protocol):
    """Finds the KV of tokens that were decoded before. Called in the engine's thread, except for `stats`."""

    def restore(self, llama: Llama, sequence: int, token_ids: Sequence[int]) -> int:
        """Makes `sequence` hold the longest known prefix of `token_ids` and nothing else; returns its length.

        Called before a prefill, once per lease. The store may keep what `sequence` held before and loses.
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

    def stats(self) -> dict[str, int]:
        """Counters and sizes by name; called from any thread."""
        ...


class LiveSequences:
    """A prefix store without memory of its own: copies the longest prefix that a live sequence holds."""

    def restore(self, llama: Llama, sequence: int, token_ids: Sequence[int]) -> int:
        wanted = list(token_ids)
        lengths = [llama.reusable(at, common_prefix(held, wanted)) for at, held in enumerate(llama.held)]
        longest = max(range(llama.sequences), key=lambda each: (lengths[each], each == sequence))
        llama.copy(longest, sequence, lengths[longest])
        return len(llama.held[sequence])

    def release(self, llama: Llama, sequence: int) -> None:
        return

    def save(self, llama: Llama, sequence: int) -> None:
        return

    def close(self, llama: Llama) -> None:
        return

    def stats(self) -> dict[str, int]:
        return {}
