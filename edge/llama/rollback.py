"""How a sequence goes back to fewer tokens: by a cut, by a cut within a sliding window, or from a checkpoint.

A recurrent state (Mamba, and some layers of LFM2, Qwen3.5, Nemotron-H) exists only at the end of what was decoded.
llama.cpp's own remedy, the context parameter `n_rs_seq`, keeps the states within the last batch only: after a draft,
which is decoded one token at a time, it restores a wrong state without an error. So copies of the state are kept here.
"""

import ctypes
from typing import NamedTuple

import llama_cpp as c
import numpy as np
from numpy.typing import NDArray

from edge.llama.batch import pointer
from edge.llama.context import LlamaContext

MAX_PROMPTS = 2
"""Checkpoints at the ends of prompts that a sequence keeps; the others are at the beginnings of its drafts."""
MIN_KEPT, MAX_KEPT = 3, 8
"""Checkpoints of one sequence; between these limits, as many as the budget allows."""
BUDGET = 1 << 29
"""Bytes of all checkpoints of all sequences."""


class CutRollback:
    """Every token has cells of its own, which can be removed alone."""

    divisible = True
    """Whether a snapshot can be cut after it is restored, so that it serves every prefix of its tokens."""
    takes_checkpoints = False

    def __init__(self, context: LlamaContext) -> None:
        self._context = context
        self._memory = context.memory

    def reusable(self, sequence: int, held: int, length: int) -> int:
        """How many tokens `rewind` to `length` leaves of the `held` ones."""
        return length

    def rewind(self, sequence: int, length: int) -> int:
        """Removes all but the first `length` tokens, or more if it must; returns how many are left."""
        return length if self._context.cut(sequence, length) else 0

    def is_complete(self, sequence: int, length: int) -> bool:
        """Whether the memory holds all that is needed to go on after `length` tokens."""
        first: int = c.llama_memory_seq_pos_min(self._memory, sequence)
        last: int = c.llama_memory_seq_pos_max(self._memory, sequence)
        return last == length - 1 and 0 <= first <= self._first_needed(length)

    def take(self, sequence: int, length: int, of_prompt: bool) -> None:
        """Remembers the state of `sequence`, which holds `length` tokens."""

    def copied(self, source: int, target: int) -> None:
        """`target` now holds all that `source` holds."""

    def _first_needed(self, length: int) -> int:
        return 0


class WindowRollback(CutRollback):
    """Some layers see only the last `window` tokens, and llama.cpp may reuse the cells of older ones.

    The context has room for all tokens in these layers too, so that their cells are rarely reused: going back, and
    sharing a part of a prompt, works as with full attention. A snapshot holds the last window only.
    """

    divisible = False

    def __init__(self, context: LlamaContext, window: int) -> None:
        super().__init__(context)
        self._window = window

    def reusable(self, sequence: int, held: int, length: int) -> int:
        first = c.llama_memory_seq_pos_min(self._memory, sequence)
        return length if 0 <= first <= self._first_needed(length) else 0

    def rewind(self, sequence: int, length: int) -> int:
        return super().rewind(sequence, self.reusable(sequence, length, length))

    def _first_needed(self, length: int) -> int:
        return max(0, length + 1 - self._window)


class _Checkpoint(NamedTuple):
    length: int
    """Tokens before it."""
    state: NDArray[np.uint8]
    """The part of llama.cpp's state that cannot be cut."""
    of_prompt: bool


class CheckpointRollback(CutRollback):
    """Some or all layers keep a recurrent state, of which only the newest version exists."""

    divisible = False
    takes_checkpoints = True

    def __init__(self, context: LlamaContext, sequences: int) -> None:
        super().__init__(context)
        self._kept: list[list[_Checkpoint]] = [[] for _ in range(sequences)]
        """Each sequence's checkpoints, the shortest first."""

    def reusable(self, sequence: int, held: int, length: int) -> int:
        if length == held:
            return length
        return max((each.length for each in self._kept[sequence] if each.length <= length), default=0)

    def rewind(self, sequence: int, length: int) -> int:
        kept = self._kept[sequence] = [each for each in self._kept[sequence] if each.length <= length]
        if c.llama_memory_seq_rm(self._memory, sequence, length, -1):
            return length
        if kept and self._restore(sequence, kept[-1]):
            return kept[-1].length
        kept.clear()
        self._context.cut(sequence, 0)
        return 0

    def take(self, sequence: int, length: int, of_prompt: bool) -> None:
        kept = self._kept[sequence]
        if kept and kept[-1].length == length:
            return
        capacity = c.llama_state_seq_get_size_ext(self._context.pointer, sequence, c.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)
        state = np.empty(capacity, np.uint8)
        size = c.llama_state_seq_get_data_ext(
            self._context.pointer,
            pointer(state, ctypes.c_uint8),
            capacity,
            sequence,
            c.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY,
        )
        if size == capacity:
            kept.append(_Checkpoint(length, state, of_prompt))
            self._discard(kept)

    def copied(self, source: int, target: int) -> None:
        self._kept[target] = list(self._kept[source])

    def _restore(self, sequence: int, checkpoint: _Checkpoint) -> bool:
        read = c.llama_state_seq_set_data_ext(
            self._context.pointer,
            pointer(checkpoint.state, ctypes.c_uint8),
            len(checkpoint.state),
            sequence,
            c.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY,
        )
        return bool(
            read == len(checkpoint.state)
            and c.llama_memory_seq_rm(self._memory, sequence, checkpoint.length, -1)  # the cells of attention
            and self.is_complete(sequence, checkpoint.length)
        )

    def _discard(self, kept: list[_Checkpoint]) -> None:
        """Drops a checkpoint if there are too many: an old prompt's, or the draft's that is missed least."""
        size = len(kept[-1].state) * len(self._kept)
        prompts = [at for at, each in enumerate(kept) if each.of_prompt]
        if len(prompts) > MAX_PROMPTS:
            del kept[prompts[0]]
        elif len(kept) > max(MIN_KEPT, min(BUDGET // size, MAX_KEPT)):
            del kept[least_missed([each.length for each in kept], prompts)]

    def _first_needed(self, length: int) -> int:
        return length - 1


def least_missed(lengths: list[int], needed: list[int]) -> int:
    """The index of the checkpoint to drop, not the last and none of `needed`: ways back grow least for their length.

    The nearer to the end, the denser are those that stay: going back n tokens decodes at most about 4n again.
    """
    end = lengths[-1]

    def growth(at: int) -> float:
        before, after = lengths[at - 1] if at else 0, lengths[at + 1]
        return (after - before) / (end - after + 1)

    return min((at for at in range(len(lengths) - 1) if at not in needed), key=growth)


def rollback_of(context: LlamaContext, sequences: int) -> CutRollback:
    """The way to go back that the model's memory needs."""
    if c.llama_model_is_recurrent(context.model) or c.llama_model_is_hybrid(context.model):
        return CheckpointRollback(context, sequences)
    window = c.llama_model_n_swa(context.model)
    return WindowRollback(context, window) if 0 < window < context.length else CutRollback(context)
