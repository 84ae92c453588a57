"""Ends a text where llama-server's /infill does: at a line that is indented too little, or at a line break too late."""

import time
from collections.abc import Callable


class LineLimits:
    """Of one text. `indent`: the fewest blanks that each line but the first begins with.

    `seconds`: from the first text on; after them the text ends with the next line break. None: no limit.
    """

    def __init__(self, indent: int, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.ended = False
        self.has_line_break = False
        self._indent = indent
        self._seconds = seconds
        self._clock = clock
        self._began: float | None = None
        self._blanks: int | None = None
        """Those that the current line begins with; None: they are complete, or it is the first line."""

    def take(self, text: str) -> str:
        """What of the next part of the text is within the limits."""
        if self._began is None and text:
            self._began = self._clock()
        for at, character in enumerate("" if self.ended else text):
            if self._blanks is not None and character in " \t":
                self._blanks += 1
                continue
            if self._blanks is not None and self._blanks < self._indent:
                self.ended = True
                return text[:at]
            self._blanks = 0 if character == "\n" else None
            if character == "\n":
                self.has_line_break = True
                if self._is_late():
                    self.ended = True
                    return text[: at + 1]
        return "" if self.ended else text

    def _is_late(self) -> bool:
        return bool(self._seconds) and self._began is not None and self._clock() - self._began > (self._seconds or 0)
