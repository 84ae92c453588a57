"""Finds marker strings in text that arrives in parts: the first complete one, and a beginning of one at the end."""

from collections.abc import Iterable


def first(text: str, markers: Iterable[str], start: int = 0) -> tuple[int, str] | None:
    """Where the first marker begins, and which it is; of several that begin there, the longest. None: there is none."""
    found = [(at, -len(marker), marker) for marker in markers if (at := text.find(marker, start)) >= 0]
    return None if not found else (min(found)[0], min(found)[2])


def unfinished(text: str, markers: Iterable[str]) -> int:
    """The length of the longest suffix of `text` that is the beginning of a marker, but not all of it."""
    lengths = ((marker, n) for marker in markers for n in range(1, min(len(marker), len(text) + 1)))
    return max((n for marker, n in lengths if text.endswith(marker[:n])), default=0)
