"""Hashes token prefixes and finds the common prefix of two token lists."""

import sys
from array import array
from collections.abc import Sequence

import xxhash


def prefix_hash(token_ids: Sequence[int]) -> str:
    """64-bit xxh3 of the ids as little-endian int32, in hexadecimal: the `prefix_hash` of a VerifyRequest."""
    ids = array("i", token_ids)
    if sys.byteorder == "big":
        ids.byteswap()
    return xxhash.xxh3_64_hexdigest(ids.tobytes())


def common_prefix(left: list[int], right: list[int]) -> int:
    """The length of the longest common prefix of two token lists.

    It bisects, so that list slices are compared in C.
    """
    same, end = 0, min(len(left), len(right))
    half = end  # usually the whole shorter list agrees
    while same < end:
        if left[same:half] == right[same:half]:
            same = half
        else:
            end = half - 1
        half = (same + end + 1) // 2
    return same
