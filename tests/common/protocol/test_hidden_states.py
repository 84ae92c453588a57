"""Hidden states survive encoding to the precision of the encoding; NaN, infinity and wrong lengths are refused."""

import numpy as np
import pytest
from msgspec.structs import replace

from common.errors import RequestError
from common.protocol.hidden_states import PackedStates, pack
from common.types import StateEncoding

RNG = np.random.default_rng(7)


def some(rows: int = 9, hidden: int = 16, scale: float = 3.0) -> np.ndarray:
    return (RNG.standard_normal((rows, hidden)) * scale).astype(np.float32)


def test_float32_comes_back_as_it_was_and_float16_to_its_precision() -> None:
    states = some()
    assert (pack(states, StateEncoding.FP32).unpack() == states).all()
    assert (pack(states, StateEncoding.FP16).unpack() == states.astype(np.float16)).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e4, 1e30])
def test_int8_is_off_by_half_a_step_of_its_row_at_most(scale: float) -> None:
    states = some(200, 64, scale) * RNG.uniform(0.01, 100, (200, 1)).astype(np.float32)
    packed = pack(states, StateEncoding.INT8)
    step = np.abs(states).max(axis=1, keepdims=True) / 127
    assert (np.abs(packed.unpack() - states) <= step * 0.5001).all()
    assert packed.nbytes == states.size + 4 * len(states)


def test_an_empty_row_stays_empty() -> None:
    assert not pack(np.zeros((2, 8), np.float32), StateEncoding.INT8).unpack().any()


def test_what_float16_cannot_hold_travels_as_float32() -> None:
    states = some()
    states[3, 5] = 70_000.0
    packed = pack(states, StateEncoding.FP16)
    assert packed.encoding is StateEncoding.FP32 and (packed.unpack() == states).all()
    with pytest.warns(RuntimeWarning, match="overflow"):
        states.astype(np.float16)


@pytest.mark.parametrize("encoding", StateEncoding)
def test_rows_are_cut_where_they_begin(encoding: StateEncoding) -> None:
    packed = pack(some(), encoding)
    whole = packed.unpack()
    for start in range(10):
        for stop in range(start, 10):
            part = packed.rows(start, stop)
            part.check(stop - start)
            assert len(part) == stop - start and (part.unpack() == whole[start:stop]).all()


@pytest.mark.parametrize("encoding", StateEncoding)
def test_lengths_that_lie_are_refused(encoding: StateEncoding) -> None:
    packed = pack(some(), encoding)
    packed.check(9)
    for wrong in (
        replace(packed, data=packed.data[:-1]),
        replace(packed, data=packed.data + b"\0"),
        replace(packed, data=b""),
        replace(packed, scales=packed.scales + b"\0\0\0\0"),
        replace(packed, hidden=17),
    ):
        with pytest.raises(RequestError):
            wrong.check(9)
    for count in (0, 8, 10, 2**31):
        with pytest.raises(RequestError):
            packed.check(count)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_on_both_sides(value: float) -> None:
    states = some()
    states[4, 2] = value
    with pytest.raises(RequestError, match="finite"):
        pack(states, StateEncoding.FP16)
    for encoding, dtype in ((StateEncoding.FP16, "<f2"), (StateEncoding.FP32, "<f4")):
        with pytest.raises(RequestError, match="finite"):
            PackedStates(encoding, 16, states.astype(dtype).tobytes()).check(9)
    scales = np.ones(9, "<f4")
    scales[3] = value
    with pytest.raises(RequestError, match="scales"):
        PackedStates(StateEncoding.INT8, 16, bytes(9 * 16), scales.tobytes()).check(9)


def test_scales_that_would_lead_to_infinity_are_refused() -> None:
    scales = np.full(1, 3e38, "<f4")
    with pytest.raises(RequestError, match="scales"):
        PackedStates(StateEncoding.INT8, 4, b"\x7f" * 4, scales.tobytes()).check(1)
    largest = np.full(1, np.finfo(np.float32).max / 256, "<f4")
    edge = PackedStates(StateEncoding.INT8, 4, b"\x80" * 4, largest.tobytes())
    edge.check(1)
    assert np.isfinite(edge.unpack()).all()
