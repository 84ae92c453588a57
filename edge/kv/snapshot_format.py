"""The format of a KV snapshot: a sequence's KV and its token ids, sealed with a keyed hash.

llama.cpp does not validate the KV that it restores (see CVE-2026-43629). So a snapshot is decompressed and handed to
llama.cpp only after the seal shows that this installation wrote all of it, for this model. The fields, in bytes:

    magic 8 | fingerprint 32 | compressed 1 | tokens 4 | state 8 | payload 8 | token ids 4 each | payload | seal 32

`state` and `payload` in the header are sizes; the seal is BLAKE2b over everything before it, with the store's key.
"""

import hashlib
import hmac
import struct
from array import array
from typing import NamedTuple

import zstandard

from common.errors import SnapshotError

KEY_SIZE = 32
MAGIC = b"EDGEKV\x00\x01"
_HEADER = struct.Struct("<8s32s?IQQ")
_SEAL_SIZE = 32
COMPRESSION_LEVEL = 1
"""zstd level: floating-point KV shrinks little at any level, and a low one is fast."""


class Snapshot(NamedTuple):
    token_ids: list[int]
    state: bytes
    """Their KV as llama.cpp serialized it."""


class SnapshotHeader(NamedTuple):
    """A snapshot's header; unverified until `unseal` has checked the seal. Sizes in bytes."""

    fingerprint: bytes
    compressed: bool
    tokens: int
    state_size: int
    payload_size: int

    @property
    def size(self) -> int:
        """The whole snapshot's size in bytes."""
        return _HEADER.size + 4 * self.tokens + self.payload_size + _SEAL_SIZE


HEADER_SIZE = _HEADER.size


def seal(key: bytes, fingerprint: str, token_ids: list[int], state: bytes, compress: bool = False) -> bytes:
    """A sealed snapshot; `fingerprint` names the model and the layout of its KV, `state` is llama.cpp's KV."""
    payload = zstandard.compress(state, COMPRESSION_LEVEL) if compress else state
    header = _HEADER.pack(MAGIC, digest(fingerprint), compress, len(token_ids), len(state), len(payload))
    parts = header, array("i", token_ids).tobytes(), payload
    return b"".join((*parts, _seal(key, *parts)))


def unseal(key: bytes, fingerprint: str | None, data: bytes) -> Snapshot:
    """The snapshot in `data`; raises SnapshotError if any bit was changed or it belongs to another model.

    `fingerprint` None accepts every model.
    """
    header = read_header(data)
    if len(data) != header.size:
        raise SnapshotError("the snapshot's size differs from its header")
    whole = memoryview(data)
    if not _is_genuine(key, whole):
        raise SnapshotError("the snapshot was altered or sealed with another key")
    if fingerprint is not None and header.fingerprint != digest(fingerprint):
        raise SnapshotError("the snapshot is of another model or of other context settings")
    payload = whole[_HEADER.size + 4 * header.tokens : -_SEAL_SIZE]
    return Snapshot(read_token_ids(header, data), _state(header, payload))


def read_header(data: bytes) -> SnapshotHeader:
    """Decodes the first HEADER_SIZE bytes; raises SnapshotError if they are not a header."""
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        raise SnapshotError("not a snapshot")
    return SnapshotHeader(*_HEADER.unpack_from(data)[1:])


def read_token_ids(header: SnapshotHeader, data: bytes) -> list[int]:
    """The token ids that follow the header in `data`."""
    ids = array("i")
    ids.frombytes(data[_HEADER.size : _HEADER.size + 4 * header.tokens])
    return ids.tolist()


def digest(fingerprint: str) -> bytes:
    """The 32 bytes that a header holds in place of the fingerprint."""
    return hashlib.blake2b(fingerprint.encode(), digest_size=32).digest()


def _state(header: SnapshotHeader, payload: memoryview) -> bytes:
    if not header.compressed:
        return bytes(payload)
    return zstandard.decompress(payload, max_output_size=header.state_size)


def _is_genuine(key: bytes, whole: memoryview) -> bool:
    return hmac.compare_digest(_seal(key, whole[:-_SEAL_SIZE]), whole[-_SEAL_SIZE:])


def _seal(key: bytes, *parts: bytes | memoryview) -> bytes:
    mac = hashlib.blake2b(key=key, digest_size=_SEAL_SIZE)
    for part in parts:
        mac.update(part)
    return mac.digest()
