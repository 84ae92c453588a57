"""llama.cpp's model and context through its C interface, and what each sequence's KV holds. Knows no threads.

One context serves many sequences, one call decodes tokens of all of them, and logits are read where llama.cpp leaves
them. Only files named edge/llama*.py import llama_cpp.
"""

import ctypes
from collections.abc import Sequence

import llama_cpp as c
import numpy as np

from common.errors import EngineError
from edge.llama.batch import Batch, BatchEntry, SequenceTokens, pointer
from edge.llama.context import CHUNK, LlamaContext
from edge.llama.sampling import Logits
from edge.llama.vocabulary import LlamaVocabulary

__all__ = ["CHUNK", "Llama"]


class Llama:
    """llama.cpp's model and context, and what each sequence of its KV cache holds.

    Belongs to the engine's thread, except for the vocabulary and `abort`. Raises StartError in one line if it cannot
    be loaded. `kv_unified`: sequences share the cells of a common beginning, and attention looks at the cells of all;
    else each has its own, and a beginning is copied. `flash_attention` None: where it keeps draws independent
    of the batch.
    """

    def __init__(
        self,
        path: str,
        context_length: int,
        gpu_layers: int,
        threads: int,
        sequences: int,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
        kv_unified: bool = False,
    ) -> None:
        self._context = LlamaContext(
            path, context_length, gpu_layers, threads, sequences, kv_type, flash_attention, kv_unified
        )
        self.context_length = self._context.length
        self.sequences = sequences
        self.unified = kv_unified
        self.held: list[list[int]] = [[] for _ in range(sequences)]
        """The token ids in each sequence's KV cache, by position."""
        self._copied_to: int | None = None
        """A sequence whose cells llama.cpp only fills when it decodes next."""
        self.vocabulary = LlamaVocabulary(self._context.model)
        self.fingerprint = self._context.fingerprint
        """Names the weights and every setting that decides what a KV cell holds and how it is laid out."""
        self._batch = Batch(CHUNK)

    def free(self) -> None:
        self._context.free()

    def rewind(self, sequence: int, length: int) -> int:
        """Forgets all but the first `length` tokens; returns how many are left: none if only all can be."""
        if not self._context.cut(sequence, length):
            length = 0
        del self.held[sequence][length:]
        return len(self.held[sequence])

    def copy(self, source: int, target: int, length: int) -> None:
        """Makes `target` hold the first `length` tokens of `source` and nothing else; shared, if KV is unified."""
        if source == target or not length:
            self.rewind(target, length)
            return
        self.rewind(target, 0)
        if self.unified:
            c.llama_memory_seq_cp(self._context.memory, source, target, 0, length)
        else:
            c.llama_memory_seq_cp(self._context.memory, source, target, -1, -1)
            c.llama_memory_seq_rm(self._context.memory, target, length, -1)
            self._copied_to = target
        self.held[target] = self.held[source][:length]

    def snapshot(self, sequence: int) -> bytes:
        """The KV of all that `sequence` holds, for `load_snapshot` in a context of the same `fingerprint`."""
        self._finish_copies()
        room = c.llama_state_seq_get_size(self._context.pointer, sequence)
        buffer = np.empty(room, np.uint8)
        size = c.llama_state_seq_get_data(self._context.pointer, pointer(buffer, ctypes.c_uint8), room, sequence)
        return buffer[:size].tobytes()

    def load_snapshot(self, sequence: int, data: bytes, token_ids: list[int]) -> bool:
        """Makes `sequence` hold `token_ids` from their `snapshot`; False, and it holds nothing, if that fails.

        llama.cpp believes what it reads: `data` must be known to be unchanged before it comes here.
        """
        self._finish_copies()
        self.rewind(sequence, 0)
        source = np.frombuffer(data, np.uint8)
        read = c.llama_state_seq_set_data(self._context.pointer, pointer(source, ctypes.c_uint8), len(data), sequence)
        ends = (
            c.llama_memory_seq_pos_min(self._context.memory, sequence),
            c.llama_memory_seq_pos_max(self._context.memory, sequence),
        )
        self.held[sequence] = list(token_ids)
        if read != len(data) or ends != (0, len(token_ids) - 1):
            self.rewind(sequence, 0)
            return False
        return True

    def decode(self, pieces: Sequence[SequenceTokens]) -> Logits | None:
        """Appends up to CHUNK tokens in one step; returns the rows wanted, [R, V], in the order of `pieces`.

        They are valid until the next decode. None: `abort` ended the step, and every sequence is as it was before.
        After an EngineError the sequences of `pieces` hold nothing.
        """
        batch = self._batch.fill(BatchEntry(at, len(self.held[at]), token_ids, rows) for at, token_ids, rows in pieces)
        try:
            done = self._context.decode(batch)
        except EngineError:
            for piece in pieces:
                self.rewind(piece.sequence, 0)
            raise
        self._copied_to = None
        if not done:
            for piece in pieces:
                self.rewind(piece.sequence, len(self.held[piece.sequence]))
            return None
        for piece in pieces:
            self.held[piece.sequence] += piece.token_ids
        return self._context.logits(sum(piece.rows for piece in pieces), self.vocabulary.size)

    def abort(self, wanted: bool) -> None:
        """Makes the step under way, and any other until this is taken back, end at once; from any thread."""
        self._context.abort(wanted)

    def _finish_copies(self) -> None:
        """Makes llama.cpp fill the cells of copies now, before any are read or written past it."""
        if (target := self._copied_to) is not None:
            length = len(self.held[target])
            self.decode([SequenceTokens(target, [0], 0)])
            self.rewind(target, length)
