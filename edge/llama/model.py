"""A whole model in llama.cpp, with a record of the tokens in each sequence's KV cache: decode, rewind, copy, snapshot.

One context serves many sequences, one call decodes tokens of all of them, and logits are read in llama.cpp's memory.
"""

import ctypes
import logging
from collections.abc import Sequence

import llama_cpp as c
import numpy as np

from common.config_edge import EdgeModelConfig
from common.errors import EngineError, StartError
from common.hardware import Setting
from edge.llama.batch import Batch, BatchEntry, SequenceTokens, pointer
from edge.llama.context import CHUNK, LlamaContext
from edge.llama.memory import kv_shape
from edge.llama.rollback import rollback_of
from edge.llama.sampling import Logits
from edge.llama.vocabulary import LlamaVocabulary

__all__ = ["CHUNK", "Llama"]

logger = logging.getLogger(__name__)


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
        self.owners = [""] * config.sequences
        """The tenant of each sequence's tokens; set by the engine's scheduler."""
        self._copied_to: int | None = None
        """A sequence with a pending copy: llama.cpp fills its cells only when it decodes next."""
        self.vocabulary = LlamaVocabulary(self._context.model)
        self.fingerprint = self._context.fingerprint
        """Identifies the weights and all settings that determine the content and layout of the KV."""
        self._batch = Batch(CHUNK)
        self._rollback = rollback_of(self._context, config.sequences)
        self.divisible = self._rollback.divisible
        """Whether a restored snapshot can be cut; else it serves only prompts that begin with all of its tokens."""
        self.takes_checkpoints = self._rollback.takes_checkpoints
        """Whether a sequence goes back only to where `checkpoint` was called."""
        if (reason := self._why_not_cheap()) is not None:
            logger.warning("model %s: a rejected draft may have the whole prompt read again: %s", config.path, reason)
        self._kv = kv_shape(self.vocabulary.meta)
        self._config = config
        self._check_weights()

    def _check_weights(self) -> None:
        """Raises StartError for weights that make no numbers of a token."""
        rows = self.decode([SequenceTokens(0, [0], 1)])
        assert rows is not None, "nobody aborts a start"
        sound = bool(np.isfinite(rows.max()))
        self.rewind(0, 0)
        if not sound:
            self.free()
            raise StartError(f"model file {self._config.path}: it computes no numbers (NaN): get the file again")

    def settings(self) -> dict[str, Setting]:
        """The settings that fit the machine, by name; a whole KV cache's bytes where its size is known."""
        kv = {} if self._kv is None else {"kv_cache_bytes": self._kv.setting(self._config)}
        return {**self._context.threads.settings(), **kv}

    def free(self) -> None:
        self._context.free()

    def reusable(self, sequence: int, length: int) -> int:
        """How many of the first `length` tokens of `sequence` a rewind or a copy to there keeps."""
        return self._rollback.reusable(sequence, len(self.held[sequence]), length)

    def rewind(self, sequence: int, length: int) -> int:
        """Removes all but the first `length` tokens; returns how many are left: fewer if the model cannot keep all."""
        kept = self._rollback.rewind(sequence, min(length, len(self.held[sequence])))
        del self.held[sequence][kept:]
        return kept

    def clear(self) -> None:
        """Empties every sequence and every cell: a cell that was only removed keeps its numbers, also NaN.

        Attention multiplies removed cells by 0, and NaN times 0 is NaN.
        """
        self._copied_to = None
        for sequence in range(self.sequences):
            self.rewind(sequence, 0)
        c.llama_memory_clear(self._context.memory, True)

    def checkpoint(self, sequence: int, of_prompt: bool = False) -> None:
        """Remembers the state of `sequence` for later rewinds, if its model needs that.

        `of_prompt`: other requests may have the same prompt; such a checkpoint is kept longer.
        """
        self._rollback.take(sequence, len(self.held[sequence]), of_prompt)

    def copy(self, source: int, target: int, length: int) -> None:
        """Makes `target` hold the first `length` tokens of `source`, or fewer, and nothing else.

        Shares the cells if unified. Fewer: see `reusable`.
        """
        length = self.reusable(source, length)
        if source == target or not length:
            self.rewind(target, length)
            return
        self.rewind(target, 0)
        if self.takes_checkpoints and not self.unified:
            # A pending copy would undo the checkpoint to which the target may have to go back.
            self.load_snapshot(target, self.snapshot(source), self.held[source])
        else:
            self._copy_cells(source, target, length)
        self._rollback.copied(source, target)
        self.rewind(target, length)

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
        self.held[sequence] = list(token_ids)
        if read != len(data) or not self._rollback.is_complete(sequence, len(token_ids)):
            self.rewind(sequence, 0)
            return False
        return True

    def decode(self, pieces: Sequence[SequenceTokens]) -> Logits | None:
        """Appends up to CHUNK tokens in one step; returns the requested logits, [R, V], in the order of `pieces`.

        They are valid until the next decode. Returns None if `abort` ended the step: its sequences hold what they held,
        or less. After an EngineError they hold nothing.
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

    def _copy_cells(self, source: int, target: int, length: int) -> None:
        if self.unified:
            c.llama_memory_seq_cp(self._context.memory, source, target, 0, length)
        else:
            c.llama_memory_seq_cp(self._context.memory, source, target, -1, -1)
            self._copied_to = target
        self.held[target] = list(self.held[source])

    def _finish_copy(self) -> None:
        """Makes llama.cpp fill the cells of a pending copy, before cells are read or written directly."""
        if (target := self._copied_to) is not None:
            length = len(self.held[target])
            self.decode([SequenceTokens(target, [0], 0)])
            self.rewind(target, length)

    def _why_not_cheap(self) -> str | None:
        """Why going back may cost more than the tokens taken back; None if it never does."""
        if self.takes_checkpoints:
            self.decode([SequenceTokens(0, [0], 0)])
            self.checkpoint(0)
            self.decode([SequenceTokens(0, [0], 0)])
            restored = self.rewind(0, 1)
            self.rewind(0, 0)
            return None if restored else "llama.cpp cannot restore the state of this kind of model"
        if not self.divisible and self.unified:
            return "with kv_unified other requests may take the cells that its sliding window needs then"
        return None
