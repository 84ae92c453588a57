"""A sequence's KV as sealed bytes: whose, how long, for which tokens, unaltered. Knows neither files nor llama.cpp.

Restoring validates nothing inside llama.cpp (CVE-2026-43629 is of that kind), so nothing is handed to it, nor even
decompressed, before the whole of it is known to be what this installation wrote for this model.

    magic 8 | fingerprint 32 | compressed 1 | tokens 4 | state 8 | payload 8 | token ids 4 each | payload | seal 32
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
LEVEL = 1
"""Of zstd: KV of floats shrinks little at any, and a restore must not wait for a deep one."""


class Snapshot(NamedTuple):
    token_ids: list[int]
    state: bytes
    """What llama.cpp gave for them."""


class SnapshotHeader(NamedTuple):
    """What a sealed snapshot says of itself; nothing of it is proven before `unseal`."""

    fingerprint: bytes
    compressed: bool
    tokens: int
    state_size: int
    payload_size: int

    @property
    def size(self) -> int:
        """Of the whole, in bytes."""
        return _HEADER.size + 4 * self.tokens + self.payload_size + _SEAL_SIZE


HEADER_SIZE = _HEADER.size


def seal(key: bytes, fingerprint: str, token_ids: list[int], state: bytes, compress: bool = False) -> bytes:
    """The snapshot with everything that `unseal` checks; `fingerprint` names the model and how its KV is laid out."""
    payload = zstandard.compress(state, LEVEL) if compress else state
    header = _HEADER.pack(MAGIC, digest(fingerprint), compress, len(token_ids), len(state), len(payload))
    parts = header, array("i", token_ids).tobytes(), payload
    return b"".join((*parts, _seal(key, *parts)))


def unseal(key: bytes, fingerprint: str | None, data: bytes) -> Snapshot:
    """The snapshot in `data`; raises SnapshotError if one bit is not as `seal` wrote it, or it is another model's.

    `fingerprint` None accepts any model's.
    """
    header = read_header(data)
    if len(data) != header.size:
        raise SnapshotError("a snapshot of another length than it says")
    whole = memoryview(data)
    if not _is_genuine(key, whole):
        raise SnapshotError("a snapshot that was altered, or sealed with another key")
    if fingerprint is not None and header.fingerprint != digest(fingerprint):
        raise SnapshotError("a snapshot of another model, or of other context settings")
    payload = whole[_HEADER.size + 4 * header.tokens : -_SEAL_SIZE]
    return Snapshot(read_token_ids(header, data), _state(header, payload))


def read_header(data: bytes) -> SnapshotHeader:
    """What the first HEADER_SIZE bytes say; raises SnapshotError if they are no header."""
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        raise SnapshotError("not a snapshot")
    return SnapshotHeader(*_HEADER.unpack_from(data)[1:])


def read_token_ids(header: SnapshotHeader, data: bytes) -> list[int]:
    """The token ids that follow the header in `data`."""
    ids = array("i")
    ids.frombytes(data[_HEADER.size : _HEADER.size + 4 * header.tokens])
    return ids.tolist()


def digest(fingerprint: str) -> bytes:
    """What a header carries in place of the fingerprint."""
    return hashlib.blake2b(fingerprint.encode(), digest_size=32).digest()


def _state(header: SnapshotHeader, payload: memoryview) -> bytes:
    if not header.compressed:
        return bytes(payload)
    return zstandard.decompress(payload, max_output_size=header.state_size)


def _is_genuine(key: bytes, whole: memoryview) -> bool:
    return hmac.compare_digest(_seal(key, whole[:-_SEAL_SIZE]), whole[-_SEAL_SIZE:])


def _seal(key: bytes, *parts: bytes | memoryview) -> bytes:
    made = hashlib.blake2b(key=key, digest_size=_SEAL_SIZE)
    for part in parts:
        made.update(part)
    return made.digest()
