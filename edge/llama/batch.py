"""Builds a llama_batch from token ids or hidden states, without a Python loop over tokens."""

import ctypes
from collections.abc import Iterable
from typing import Any, NamedTuple

import llama_cpp as c
import numpy as np
from numpy.typing import NDArray

States = NDArray[np.float32]
"""Hidden states, [n, H], before any norm."""


class SequenceTokens(NamedTuple):
    """Tokens that one step appends to a sequence; it computes logits after the last `rows` of them."""

    sequence: int
    token_ids: list[int]
    rows: int


class BatchEntry(NamedTuple):
    """Token ids, or hidden states [n, H], for a sequence from `position` on; logits after the last `rows` of them."""

    sequence: int
    position: int
    inputs: list[int] | States
    rows: int


class Batch:
    """A llama_batch over numpy arrays: `capacity` token ids, or, with `width` H, hidden states [capacity, H]."""

    def __init__(self, capacity: int, width: int = 0) -> None:
        self._position, self._sequence, self._ones = (np.ones(capacity, np.int32) for _ in range(3))
        self._inputs: NDArray[Any] = np.zeros((capacity, width), np.float32) if width else np.ones(capacity, np.int32)
        self._sequence_at = self._sequence.ctypes.data + self._sequence.itemsize * np.arange(capacity, dtype=np.uintp)
        self._wants_logits = np.zeros(capacity, np.int8)
        self._struct = c.llama_batch(
            0,
            None if width else pointer(self._inputs, c.llama_token),
            pointer(self._inputs, ctypes.c_float) if width else None,
            pointer(self._position, c.llama_pos),
            pointer(self._ones, ctypes.c_int32),
            pointer(self._sequence_at, ctypes.POINTER(c.llama_seq_id)),
            pointer(self._wants_logits, ctypes.c_int8),
        )

    def fill(self, entries: Iterable[BatchEntry]) -> c.llama_batch:
        """The batch of these entries, in order; valid until the next call."""
        begin = 0
        for sequence, position, inputs, rows in entries:
            end = begin + len(inputs)
            self._inputs[begin:end] = inputs
            self._position[begin:end] = range(position, position + len(inputs))
            self._sequence[begin:end] = sequence
            self._wants_logits[begin:end] = 0
            self._wants_logits[end - rows : end] = 1
            begin = end
        self._struct.n_tokens = begin
        return self._struct


def pointer(array: NDArray[Any], kind: Any) -> Any:
    """A C pointer to the array's first element, as elements of the ctypes type `kind`."""
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
