"""Encodes hidden states as float16, as int8 with a scale for each row, or as float32.

The bytes are little-endian rows whose number and length both sides know; decoding never unpickles or executes them.
"""

from typing import Self

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from common.errors import RequestError
from common.types import StateEncoding

DTYPES: dict[StateEncoding, np.dtype[np.generic]] = {
    StateEncoding.FP16: np.dtype("<f2"),
    StateEncoding.INT8: np.dtype("i1"),
    StateEncoding.FP32: np.dtype("<f4"),
}
SCALE = np.dtype("<f4")
INT8_MAX = 127


class PackedStates(Struct, frozen=True):
    """Encoded rows of hidden states."""

    encoding: StateEncoding
    hidden: int
    """Numbers in a row: the model's hidden size."""
    data: bytes
    scales: bytes = b""
    """int8 only: one float32 for each row, by which its numbers are multiplied."""

    def __len__(self) -> int:
        return len(self.data) // (self.hidden * DTYPES[self.encoding].itemsize)

    @property
    def nbytes(self) -> int:
        return len(self.data) + len(self.scales)

    def check(self, count: int) -> None:
        """Raises RequestError unless these are `count` rows of finite numbers."""
        row = self.hidden * DTYPES[self.encoding].itemsize
        if len(self.data) != count * row:
            raise RequestError(f"data holds {len(self.data)} bytes; {count} rows of {row} are {count * row}", "data")
        wanted = count * SCALE.itemsize if self.encoding is StateEncoding.INT8 else 0
        if len(self.scales) != wanted:
            raise RequestError(f"scales holds {len(self.scales)} bytes instead of {wanted}", "scales")
        if self.encoding is StateEncoding.INT8:
            scales = np.frombuffer(self.scales, SCALE)
            # The comparisons are false for NaN. The limit keeps 128 * scale at half of the range of float32.
            if not ((scales >= 0) & (scales <= np.finfo(np.float32).max / 256)).all():
                raise RequestError("scales must be finite, and not negative", "scales")
        elif not np.isfinite(np.frombuffer(self.data, DTYPES[self.encoding])).all():
            raise RequestError("hidden states must be finite", "data")

    def rows(self, start: int, stop: int) -> Self:
        """The rows `start` ... `stop` - 1."""
        row = self.hidden * DTYPES[self.encoding].itemsize
        scales = self.scales[start * SCALE.itemsize : stop * SCALE.itemsize]
        return type(self)(self.encoding, self.hidden, self.data[start * row : stop * row], scales)

    def unpack(self) -> NDArray[np.float32]:
        """Shape [rows, hidden]."""
        numbers = np.frombuffer(self.data, DTYPES[self.encoding]).reshape(-1, self.hidden).astype(np.float32)
        if self.encoding is StateEncoding.INT8:
            numbers *= np.frombuffer(self.scales, SCALE)[:, None]
        return numbers


def pack(states: NDArray[np.float32], encoding: StateEncoding) -> PackedStates:
    """Encodes `states` [n, hidden]; float32 where float16 would overflow. Raises RequestError for NaN or infinity.

    int8: each row is divided by its scale, its largest magnitude / 127, and rounded: the error is at most scale / 2.
    """
    if not np.isfinite(states).all():
        raise RequestError("hidden states must be finite")
    hidden = states.shape[1]
    if encoding is StateEncoding.INT8:
        scales = (np.abs(states).max(axis=1) / INT8_MAX).astype(SCALE)
        divisors = np.where(scales > 0, scales, 1)[:, None]
        numbers = np.clip(np.rint(states / divisors), -INT8_MAX, INT8_MAX).astype(DTYPES[encoding])
        return PackedStates(encoding, hidden, numbers.tobytes(), scales.tobytes())
    if encoding is StateEncoding.FP16 and np.abs(states).max(initial=0) > np.finfo(np.float16).max:
        encoding = StateEncoding.FP32
    return PackedStates(encoding, hidden, states.astype(DTYPES[encoding]).tobytes())
