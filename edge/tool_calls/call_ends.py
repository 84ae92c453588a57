"""Finds where a call ends in text that arrives in parts, reading each character once."""

import re
from typing import Protocol

from edge.text import markers

BRACKETS = re.compile(r'["\\{}\[\]]')


class CallEnd(Protocol):
    """Looks for the end of one call."""

    def feed(self, text: str) -> int | None:
        """How many characters of `text`, the next part of the answer, belong to the call; None: all, so far."""
        ...


class MarkerEnd:
    """The call ends with the marker."""

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self._before = ""
        """The end of the text so far, where the marker may have begun."""

    def feed(self, text: str) -> int | None:
        both = self._before + text
        at = both.find(self._marker)
        if at >= 0:
            return at + len(self._marker) - len(self._before)
        held = markers.unfinished(both, [self._marker])
        self._before = both[len(both) - held :]
        return None


class JsonEnd:
    """The call ends with a JSON value: an array, if the text begins with one, else the first object.

    So a name may stand before the object, also with tags in square brackets.
    """

    def __init__(self) -> None:
        self._opening = ""
        """The bracket that the value begins with; empty: not found yet."""
        self._blank = True
        """Nothing but white space so far."""
        self._depth = 0
        self._quoted = False
        self._escaped = False

    def feed(self, text: str) -> int | None:
        start = 0 if self._opening else self._start(text)
        if start is None:
            return None
        if self._escaped and start < len(text):
            self._escaped, start = False, start + 1
        return self._close(text, start)

    def _start(self, text: str) -> int | None:
        if self._blank and (body := text.lstrip()):
            self._blank = False
            if body[0] == "[":
                self._opening = "["
                return len(text) - len(body)
        at = text.find("{")
        if at < 0:
            return None
        self._opening = "{"
        return at

    def _close(self, text: str, at: int) -> int | None:
        while match := BRACKETS.search(text, at):
            at, sign = match.end(), match[0]
            if sign == "\\":
                at += 1
                self._escaped = at > len(text)
            elif sign == '"':
                self._quoted = not self._quoted
            elif not self._quoted:
                self._depth += 1 if sign in "{[" else -1
                if not self._depth:
                    return at
        return None
