"""A whole model in llama.cpp, with a record of the tokens in each sequence's KV cache: decode, rewind, copy, snapshot.

One context serves many sequences, one call decodes tokens of all of them, and logits are read in llama.cpp's memory.
"""

import ctypes
from collections.abc import Sequence

import llama_cpp as c
import numpy as np

from common.config_edge import EdgeModelConfig
from common.errors import EngineError
from common.hardware import Setting
from edge.llama.batch import Batch, BatchEntry, SequenceTokens, pointer
from edge.llama.context import CHUNK, LlamaContext
from edge.llama.memory import kv_shape
from edge.llama.sampling import Logits
from edge.llama.vocabulary import LlamaVocabulary

__all__ = ["CHUNK", "Llama"]


class Llama:
    """Used in the engine's thread, except for `vocabulary` and `abort`. Raises StartError if it cannot be loaded.

    With `config.kv_unified` sequences share the KV cells of a common prefix, but attention reads the cells of all
    sequences; else each sequence has its own cells, and a common prefix is copied.
    """

    def __init__(self, config: EdgeModelConfig) -> None:
        self._context = LlamaContext(config)
        self.context_length = self._context.length
        """Tokens that fit in each sequence."""
        self.sequences = config.sequences
        self.unified = config.kv_unified
        self.held: list[list[int]] = [[] for _ in range(config.sequences)]
        """The token ids in each sequence's KV cache, by position."""
        self._copied_to: int | None = None
        """A sequence with a pending copy: llama.cpp fills its cells only when it decodes next."""
        self.vocabulary = LlamaVocabulary(self._context.model)
        self.fingerprint = self._context.fingerprint
        """Identifies the weights and all settings that determine the content and layout of the KV."""
        self._batch = Batch(CHUNK)
        self._kv = kv_shape(self.vocabulary.meta)
        self._config = config

    def settings(self) -> dict[str, Setting]:
        """The settings that fit the machine, by name; a whole KV cache's bytes where its size is known."""
        kv = {} if self._kv is None else {"kv_cache_bytes": self._kv.setting(self._config)}
        return {**self._context.threads.settings(), **kv}

    def free(self) -> None:
        self._context.free()

    def rewind(self, sequence: int, length: int) -> int:
        """Removes all but the first `length` tokens; returns how many are left: 0 if llama.cpp can only remove all."""
        if not self._context.cut(sequence, length):
            length = 0
        del self.held[sequence][length:]
        return len(self.held[sequence])

    def copy(self, source: int, target: int, length: int) -> None:
        """Makes `target` hold the first `length` tokens of `source` and nothing else; shares the cells if unified."""
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
        """The serialized KV of `sequence`, for `load_snapshot` in a context with the same `fingerprint`."""
        self._finish_copy()
        capacity = c.llama_state_seq_get_size(self._context.pointer, sequence)
        buffer = np.empty(capacity, np.uint8)
        size = c.llama_state_seq_get_data(self._context.pointer, pointer(buffer, ctypes.c_uint8), capacity, sequence)
        return buffer[:size].tobytes()

    def load_snapshot(self, sequence: int, data: bytes, token_ids: list[int]) -> bool:
        """Makes `sequence` hold `token_ids` from their `snapshot`; if that fails, it holds nothing, and returns False.

        llama.cpp does not validate `data`: the caller must know that it is unchanged.
        """
        self._finish_copy()
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
        """Appends up to CHUNK tokens in one step; returns the requested logits, [R, V], in the order of `pieces`.

        They are valid until the next decode. Returns None if `abort` ended the step: no sequence has changed. After an
        EngineError the sequences of `pieces` hold nothing.
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
        """Ends the current step, and every later one until `wanted` is False again; from any thread."""
        self._context.abort(wanted)

    def _finish_copy(self) -> None:
        """Makes llama.cpp fill the cells of a pending copy, before cells are read or written directly."""
        if (target := self._copied_to) is not None:
            length = len(self.held[target])
            self.decode([SequenceTokens(target, [0], 0)])
            self.rewind(target, length)
