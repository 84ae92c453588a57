"""The prefix of tokens that edge and cloud both hold, as a hash. Knows nothing of who holds it."""

import sys
from array import array
from collections.abc import Sequence

import xxhash


def prefix_hash(token_ids: Sequence[int]) -> str:
    """64-bit xxh3 of the ids as little-endian int32, in hexadecimal; what a verify's `prefix_hash` must equal."""
    ids = array("i", token_ids)
    if sys.byteorder == "big":
        ids.byteswap()
    return xxhash.xxh3_64_hexdigest(ids.tobytes())
