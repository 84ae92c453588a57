"""What the engine's thread asks of whoever keeps the KV of earlier tokens, and when. Knows no tiers."""

from collections.abc import Sequence
from typing import Protocol

from edge.llama.model import Llama


class PrefixStore(Protocol):
    """Where the KV of tokens decoded before may be found again; called in the engine's thread, but for `stats`."""

    def restore(self, llama: Llama, sequence: int, token_ids: Sequence[int]) -> int:
        """Brings the longest known beginning of `token_ids` into `sequence`; returns how many tokens it now holds.

        Called before a prefill, once per lease. What `sequence` held before and loses by it is the store's to keep;
        afterwards it holds nothing else.
        """
        ...

    def release(self, llama: Llama, sequence: int) -> None:
        """The lease on `sequence` ended: what it holds may be kept for others."""
        ...

    def evicted(self, llama: Llama, sequence: int) -> None:
        """Somebody who reuses nothing is about to overwrite `sequence`: the last moment to take a snapshot."""
        ...

    def close(self, llama: Llama) -> None:
        """The engine stops: the last moment to take snapshots; no call follows."""
        ...

    def stats(self) -> dict[str, int]:
        """Counts and sizes by name; called from any thread."""
        ...
