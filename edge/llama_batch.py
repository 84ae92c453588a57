"""What one step decodes, as llama.cpp wants it. Knows no context and no model."""

import ctypes
from typing import Any, NamedTuple

import llama_cpp as c
import numpy as np
from numpy.typing import NDArray


class Piece(NamedTuple):
    """Tokens that one step appends to one sequence; logits are wanted after the last `rows` of them."""

    sequence: int
    token_ids: list[int]
    rows: int


class Batch:
    """A llama_batch over numpy arrays, so that filling it takes no loop over tokens."""

    def __init__(self, room: int) -> None:
        self._token, self._position, self._sequence, self._one = (np.ones(room, np.int32) for _ in range(4))
        self._sequence_at = self._sequence.ctypes.data + self._sequence.itemsize * np.arange(room, dtype=np.uintp)
        self._wants_logits = np.zeros(room, np.int8)
        self._struct = c.llama_batch(
            0,
            pointer(self._token, c.llama_token),
            None,
            pointer(self._position, c.llama_pos),
            pointer(self._one, ctypes.c_int32),
            pointer(self._sequence_at, ctypes.POINTER(c.llama_seq_id)),
            pointer(self._wants_logits, ctypes.c_int8),
        )

    def fill(self, pieces: list[tuple[Piece, int]]) -> c.llama_batch:
        """The batch that appends each piece at its position; valid until the next call."""
        begin = 0
        for (sequence, token_ids, rows), position in pieces:
            end = begin + len(token_ids)
            self._token[begin:end] = token_ids
            self._position[begin:end] = range(position, position + len(token_ids))
            self._sequence[begin:end] = sequence
            self._wants_logits[begin:end] = 0
            self._wants_logits[end - rows : end] = 1
            begin = end
        self._struct.n_tokens = begin
        return self._struct


def pointer(array: NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
