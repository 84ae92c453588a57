"""The token prefix that edge and cloud both hold: its length and its hash."""

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


def common_prefix(left: list[int], right: list[int]) -> int:
    """The length of the longest common prefix of two token lists.

    Found by bisection, so that whole slices are compared at the speed of C.
    """
    same, end = 0, min(len(left), len(right))
    half = end  # most often all of the shorter list agrees
    while same < end:
        if left[same:half] == right[same:half]:
            same = half
        else:
            end = half - 1
        half = (same + end + 1) // 2
    return same
