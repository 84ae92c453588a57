"""Hidden states as bytes: float16, int8 with a scale for each row, or float32. Knows no frames and no models.

Raw little-endian rows whose number and length both sides know: nothing in them is ever executed or unpickled.
"""

from typing import Self

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from common.errors import RequestError
from common.protocol.split_frames import StateEncoding

TYPES: dict[StateEncoding, np.dtype[np.generic]] = {
    StateEncoding.FP16: np.dtype("<f2"),
    StateEncoding.INT8: np.dtype("i1"),
    StateEncoding.FP32: np.dtype("<f4"),
}
SCALE = np.dtype("<f4")
INT8_MAX = 127


class Packed(Struct, frozen=True):
    """Rows of `hidden` numbers each, as they travel."""

    kind: StateEncoding
    hidden: int
    data: bytes
    scales: bytes = b""

    def __len__(self) -> int:
        return len(self.data) // (self.hidden * TYPES[self.kind].itemsize)

    @property
    def nbytes(self) -> int:
        return len(self.data) + len(self.scales)

    def check(self, count: int) -> None:
        """Raises RequestError unless these are `count` rows of finite numbers."""
        row = self.hidden * TYPES[self.kind].itemsize
        if len(self.data) != count * row:
            raise RequestError(f"data holds {len(self.data)} bytes; {count} rows of {row} are {count * row}", "data")
        wanted = count * SCALE.itemsize if self.kind is StateEncoding.INT8 else 0
        if len(self.scales) != wanted:
            raise RequestError(f"scales holds {len(self.scales)} bytes instead of {wanted}", "scales")
        if self.kind is StateEncoding.INT8:
            scales = np.frombuffer(self.scales, SCALE)
            # The comparisons are false for "not a number". Half the range: -128 is there, too.
            if not ((scales >= 0) & (scales <= np.finfo(np.float32).max / 256)).all():
                raise RequestError("scales must be finite, and not negative", "scales")
        elif not np.isfinite(np.frombuffer(self.data, TYPES[self.kind])).all():
            raise RequestError("hidden states must be finite", "data")

    def rows(self, start: int, stop: int) -> Self:
        """The rows from `start` to before `stop`."""
        row = self.hidden * TYPES[self.kind].itemsize
        scales = self.scales[start * SCALE.itemsize : stop * SCALE.itemsize]
        return type(self)(self.kind, self.hidden, self.data[start * row : stop * row], scales)

    def unpack(self) -> NDArray[np.float32]:
        """Shape [rows, hidden]."""
        numbers = np.frombuffer(self.data, TYPES[self.kind]).reshape(-1, self.hidden).astype(np.float32)
        if self.kind is StateEncoding.INT8:
            numbers *= np.frombuffer(self.scales, SCALE)[:, None]
        return numbers


def pack(states: NDArray[np.float32], kind: StateEncoding) -> Packed:
    """`states` [n, hidden] as bytes: as float32 where float16 cannot hold them. Raises RequestError for no numbers.

    int8: each row is divided by its largest magnitude over 127 and rounded, so off by half of that at most.
    """
    if not np.isfinite(states).all():
        raise RequestError("hidden states must be finite")
    hidden = states.shape[1]
    if kind is StateEncoding.INT8:
        scales = (np.abs(states).max(axis=1) / INT8_MAX).astype(SCALE)
        divisors = np.where(scales > 0, scales, 1)[:, None]
        numbers = np.clip(np.rint(states / divisors), -INT8_MAX, INT8_MAX).astype(TYPES[kind])
        return Packed(kind, hidden, numbers.tobytes(), scales.tobytes())
    if kind is StateEncoding.FP16 and np.abs(states).max(initial=0) > np.finfo(np.float16).max:
        kind = StateEncoding.FP32
    return Packed(kind, hidden, states.astype(TYPES[kind]).tobytes())
