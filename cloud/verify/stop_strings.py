"""Finds the token at which an answer's text completes a stop string."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

MARGIN = 4
"""Tokens to decode beyond one for each byte: special tokens have no text, and a character may be cut on the left."""


class Stop(NamedTuple):
    """A completed stop string: the first `keep` drawn tokens remain; the last of them completes `text`."""

    keep: int
    text: str


def find_stop(
    decode: Callable[[list[int]], str], answer: Sequence[int], drawn: Sequence[int], stop: Sequence[str]
) -> Stop | None:
    """The first stop string that `drawn` completes after `answer`, which contains none; None if it completes none."""
    if not stop or not drawn:
        return None
    reach = max(len(text.encode()) for text in stop) + MARGIN
    tail = list(answer[-reach:])
    decoded = decode([*tail, *drawn])
    if not any(text in decoded for text in stop):
        return None  # the usual case takes one decode, not one for each token
    texts = ((keep, decode([*tail, *drawn[:keep]])) for keep in range(1, len(drawn) + 1))
    return next((Stop(keep, text) for keep, so_far in texts for text in stop if text in so_far), None)
