"""Turns tokens into text as they arrive: whole characters only, and no text that may belong to a stop string.

The text does not depend on how the token ids are split into calls.
"""

import codecs
from collections.abc import Callable, Sequence

from common.errors import RequestError
from edge.text import markers


class TextStream:
    """One answer's text: `push` its tokens, then `flush` once. `piece` gives a token's bytes."""

    def __init__(self, piece: Callable[[int], bytes], stop: Sequence[str] = ()) -> None:
        if "" in stop:
            raise RequestError("a stop string must not be empty", param="stop")
        self.stopped_by: str | None = None
        """The stop string that appeared: the text ends before it and does not continue."""
        self.decoded = 0
        """Characters decoded so far, returned or held back."""
        self.shown = 0
        """Characters returned so far."""
        self._piece = piece
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string appeared."""
        return self.stopped_by is not None

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that may now be shown: without part of a character or the beginning of a stop string."""
        return self._release(b"".join(map(self._piece, token_ids)), last=False)

    def flush(self) -> str:
        """The text held back, at the end of the answer; an incomplete character becomes U+FFFD."""
        return self._release(b"", last=True)

    def _release(self, data: bytes, last: bool) -> str:
        if self.stopped:
            return ""
        decoded = self._decoder.decode(data, last)
        self.decoded += len(decoded)
        shown = self._safe(self._held + decoded, last)
        self.shown += len(shown)
        return shown

    def _safe(self, text: str, last: bool) -> str:
        # The stop string that is complete first counts, as if the text arrived character by character.
        hits = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if hits:
            end, start = min(hits)
            self.stopped_by, self._held = text[start:end], ""
            return text[:start]
        safe = len(text) if last else len(text) - markers.unfinished(text, self._stop)
        self._held = text[safe:]
        return text[:safe]
