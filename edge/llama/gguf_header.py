"""Reads and validates a GGUF file's header before llama.cpp loads the file.

gguf's own GGUFReader creates an object for every array element (13 s and 600 MB for a vocabulary of 150,000) and trusts
every count. This reader compares each length with the rest of the file first, and keeps only what is needed.
"""

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType, Keys

from common.errors import StartError

_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
_MAX_KEY_BYTES, _MAX_NAME_BYTES, _MAX_DIMENSIONS = 65535, 63, 4
_MAX_HEADER_BYTES = 1 << 28
"""More than any real header has, and little enough to read into memory."""


class GgufArray(NamedTuple):
    """An array in the header; only string values are kept."""

    of: GGUFValueType
    length: int
    strings: list[bytes]


class GgufHeader(NamedTuple):
    metadata: dict[str, Any]
    """By key: a number, a bool, a string as bytes, or a GgufArray."""
    tensors: int
    """The number of tensors."""


def read_header(path: Path) -> GgufHeader:
    """The header of a GGUF file; raises StartError if llama.cpp could not load the file, or could abort on it."""
    try:
        with path.open("rb") as file:
            return _Reader(file, path.stat().st_size).header()
    except OSError as error:
        raise StartError(f"model file {path}: {error.strerror}") from error
    except _Malformed as fault:
        raise StartError(f"model file {path}: {fault}") from fault


class _Malformed(Exception):
    """The reason, as the second half of an error line."""


class _Reader:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._at = file, size, 0

    def header(self) -> GgufHeader:
        if self._take(4) != b"GGUF":
            raise _Malformed("not a GGUF file")
        version, tensors, pairs = self._unpack("<IQQ")
        if version not in (2, 3):
            raise _Malformed(f"GGUF version {version} is not supported (only 2 and 3, little-endian)")
        self._check_count("metadata keys", pairs, smallest=13)
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string(_MAX_KEY_BYTES).decode(errors="replace")
            if not key or key in metadata:
                raise _Malformed(f"metadata key {key!r} is empty or a duplicate")
            metadata[key] = self._value(self._kind())
        _check_numbers(metadata)
        _check_vocabulary(metadata)
        self._check_count("tensors", tensors, smallest=32)
        self._check_tensors(tensors, _alignment(metadata))
        return GgufHeader(metadata, tensors)

    def _check_tensors(self, count: int, alignment: int) -> None:
        """llama.cpp expects the tensors' data in the order of their entries, each padded to the alignment."""
        names: set[bytes] = set()
        end = 0
        for _ in range(count):
            name = self._string(_MAX_NAME_BYTES)
            size, offset = self._tensor(name)
            if name in names or offset != end:
                raise _Malformed(f"tensor {_text(name)} is a duplicate or has a wrong offset")
            names.add(name)
            last, end = offset + size, _padded(offset + size, alignment)
        if count and _padded(self._at, alignment) + last > self._size:
            missing = _padded(self._at, alignment) + last - self._size
            raise _Malformed(f"truncated: {missing:,} bytes of the tensors are missing")

    def _tensor(self, name: bytes) -> tuple[int, int]:
        """One tensor's size and offset in bytes."""
        (count,) = self._unpack("<I")
        if not 1 <= count <= _MAX_DIMENSIONS:
            raise _Malformed(f"tensor {_text(name)} has {count} dimensions")
        *shape, number, offset = self._unpack(f"<{count}QIQ")
        try:
            block, block_size = GGML_QUANT_SIZES[GGMLQuantizationType(number)]
        except (ValueError, KeyError):
            raise _Malformed(f"tensor {_text(name)} has the unknown type {number}") from None
        if min(shape) < 1 or math.prod(shape) >= 1 << 63 or shape[0] % block:
            raise _Malformed(f"tensor {_text(name)} has the invalid shape {tuple(shape)}")
        return math.prod(shape) // block * block_size, int(offset)

    def _value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self._string(self._size)
        if kind == GGUFValueType.ARRAY:
            return self._array()
        (value,) = self._unpack("<" + _SCALARS[kind])
        return value

    def _array(self) -> GgufArray:
        kind = self._kind()
        (length,) = self._unpack("<Q")
        if kind == GGUFValueType.ARRAY:
            raise _Malformed("the metadata has an array of arrays")
        if kind == GGUFValueType.STRING:
            self._check_count("strings in an array", length, smallest=8)
            return GgufArray(kind, length, [self._string(self._size) for _ in range(length)])
        size = struct.calcsize("<" + _SCALARS[kind])
        self._check_count("numbers in an array", length, smallest=size)
        self._at = self._file.seek(self._at + length * size)
        return GgufArray(kind, length, [])

    def _kind(self) -> GGUFValueType:
        (number,) = self._unpack("<I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise _Malformed(f"a metadata value has the unknown type {number}") from None

    def _string(self, max_bytes: int) -> bytes:
        (length,) = self._unpack("<Q")
        if length > max_bytes:
            raise _Malformed(f"the header has a string of {length:,} bytes")
        return self._take(length)

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def _take(self, count: int) -> bytes:
        if count > self._size - self._at:
            raise _Malformed("truncated within its header")
        if self._at + count > _MAX_HEADER_BYTES:
            raise _Malformed(f"its header has more than {_MAX_HEADER_BYTES:,} bytes")
        self._at += count
        return self._file.read(count)

    def _check_count(self, what: str, count: int, smallest: int) -> None:
        if count * smallest > self._size - self._at:
            raise _Malformed(f"truncated or damaged: it has no room for {count:,} {what}")


def _check_numbers(metadata: dict[str, Any]) -> None:
    """Checks values that llama.cpp reads only when it computes, and then aborts over."""
    for key, value in metadata.items():
        if "epsilon" in key and isinstance(value, float) and not 0 <= value < math.inf:
            raise _Malformed(f"{key} is {value}")


def _check_vocabulary(metadata: dict[str, Any]) -> None:
    """Checks what llama.cpp expects of a vocabulary; it aborts the process if that is wrong."""
    tokens = metadata.get(Keys.Tokenizer.LIST)
    if tokens is None:
        return
    if not isinstance(tokens, GgufArray) or tokens.of != GGUFValueType.STRING or not tokens.length:
        raise _Malformed("its vocabulary is not a list of strings")
    if len(set(tokens.strings)) != tokens.length:
        raise _Malformed("its vocabulary has a duplicate token")


def _alignment(metadata: dict[str, Any]) -> int:
    alignment = metadata.get(Keys.General.ALIGNMENT, GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _Malformed(f"alignment {alignment!r} is not a power of two")
    return alignment


def _padded(size: int, alignment: int) -> int:
    return (size + alignment - 1) // alignment * alignment


def _text(name: bytes) -> str:
    return repr(name.decode(errors="replace"))
