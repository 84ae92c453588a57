"""Turns tokens into text while they arrive: whole characters only, and nothing that a stop string may swallow.

Knows no tokenizer but one function from token id to bytes. What comes out does not depend on how the ids are cut.
"""

import codecs
from collections.abc import Callable, Sequence

from common.errors import RequestError


class TextStream:
    """One answer's text; `push` what was committed, then `flush` once at its end."""

    def __init__(self, piece: Callable[[int], bytes], stop: Sequence[str] = ()) -> None:
        if "" in stop:
            raise RequestError("a stop string must not be empty", param="stop")
        self.stopped = False
        """A stop string appeared: the text ends before it, nothing more will come."""
        self.decoded = 0
        """Characters that have come in, shown or not."""
        self.shown = 0
        """Characters that have come out."""
        self._piece = piece
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is now safe to show: no part of a character, no beginning of a stop string."""
        return self._release(b"".join(map(self._piece, token_ids)), last=False)

    def flush(self) -> str:
        """What was held back, when nothing follows; an unfinished character becomes U+FFFD."""
        return self._release(b"", last=True)

    def _release(self, data: bytes, last: bool) -> str:
        if self.stopped:
            return ""
        come = self._decoder.decode(data, last)
        self.decoded += len(come)
        shown = self._safe(self._held + come, last)
        self.shown += len(shown)
        return shown

    def _safe(self, text: str, last: bool) -> str:
        # The stop string that is complete first wins, as it would if the text came letter by letter.
        hits = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if hits:
            self.stopped = True
            self._held = ""
            return text[: min(hits)[1]]
        safe = len(text) if last else len(text) - self._possible_stop(text)
        self._held = text[safe:]
        return text[:safe]

    def _possible_stop(self, text: str) -> int:
        """The length of the longest end of `text` with which a stop string begins."""
        lengths = ((stop, n) for stop in self._stop for n in range(1, min(len(stop), len(text) + 1)))
        return max((n for stop, n in lengths if text.endswith(stop[:n])), default=0)
