"""The prefix store of an engine that was given none: what live sequences hold, and nothing else."""

from collections.abc import Sequence

from common.protocol.prefix_hash import common_prefix
from edge.llama.model import Llama


class LiveSequences:
    """A prefix store that only knows what live sequences hold."""

    def restore(self, llama: Llama, sequence: int, token_ids: Sequence[int]) -> int:
        wanted = list(token_ids)
        lengths = [common_prefix(held, wanted) for held in llama.held]
        longest = max(range(llama.sequences), key=lambda each: (lengths[each], each == sequence))
        llama.copy(longest, sequence, lengths[longest])
        return lengths[longest]

    def release(self, llama: Llama, sequence: int) -> None:
        return

    def evicted(self, llama: Llama, sequence: int) -> None:
        return

    def close(self, llama: Llama) -> None:
        return

    def stats(self) -> dict[str, int]:
        return {}
