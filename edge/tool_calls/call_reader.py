"""Reads the tool calls out of an answer as it arrives; a call that is malformed or cut off stays text."""

from collections.abc import Sequence

from edge.text import markers
from edge.tool_calls.call_ends import CallEnd
from edge.tool_calls.call_format import FAULTS, CallFormat, Schemas
from edge.tool_calls.parts import Part, Said


class CallReader:
    """One answer of a model that writes calls in one of `formats`.

    A call is given when it is complete, never before. White space around it is no text.
    """

    thinking = False

    def __init__(self, formats: Sequence[CallFormat], schemas: Schemas) -> None:
        self._formats = formats
        self._schemas = schemas
        self._held = ""
        """Text that is not decided yet: it may begin a call, or be a call that has begun."""
        self._format: CallFormat | None = None
        """Of the call that `_held` begins with."""
        self._end: CallEnd | None = None
        self._space = ""
        """White space before that call."""
        self._scanned = 0
        """Characters of `_held` in which the call does not end."""
        self._close: str | None = None
        """What may still follow the last call and belongs to it; None: text has followed, or there was no call."""
        self._said = False

    def feed(self, text: str) -> list[Part]:
        self._held += text
        return self._read(last=False)

    def end(self) -> list[Part]:
        return self._read(last=True)

    def _read(self, last: bool) -> list[Part]:
        parts = list[Part]()
        while self._held:
            before = len(self._held), self._format
            parts += self._text(last) if self._format is None else self._call(last)
            if (len(self._held), self._format) == before:
                break
        return parts

    def _text(self, last: bool) -> list[Part]:
        """The text up to the next call, of which the format is then known."""
        if self._close is not None and not self._skip(self._close, last):
            return []
        begins = [one for one in self._formats if not (one.at_start and self._said)]
        found = self._next(begins)
        if found is not None:
            at, self._format = found
            text, self._held = self._held[:at], self._held[at:]
            self._end, self._scanned = self._format.end(), 0 if self._format.keeps_begin else len(self._format.begin)
            said = text.rstrip()
            self._space = text[len(said) :]
            return self._say(said)
        open_begin = markers.unfinished(self._held, [one.begin for one in begins])
        text = self._held if last else self._held[: len(self._held) - open_begin].rstrip()
        self._held = self._held[len(text) :]
        return self._say(text)

    def _skip(self, close: str, last: bool) -> bool:
        """Drops what belongs to a call that was read; False if more text is needed to know."""
        self._held = self._held.lstrip()
        if close and self._held.startswith(close):
            self._held = self._held[len(close) :].lstrip()
            close = ""
        cut_off = close.startswith(self._held)
        if cut_off and last:
            self._held = ""  # the end of the answer: by its length, for example
        undecided = cut_off and not last
        self._close = close if undecided else None
        return not undecided

    def _next(self, formats: Sequence[CallFormat]) -> tuple[int, CallFormat] | None:
        """Where the next call begins and in which format; formats that begin alike are told apart by what follows."""
        begins = [one.begin for one in formats if not one.at_start]
        blank = len(self._held) - len(self._held.lstrip())
        at_start = [(blank, one) for one in formats if one.at_start and self._held.startswith(one.begin, blank)]
        if at_start:
            return at_start[0]
        found = markers.first(self._held, begins)
        return None if found is None else (found[0], next(one for one in formats if one.begin == found[1]))

    def _call(self, last: bool) -> list[Part]:
        """The call, when its end is found; text, when there cannot be or is not a call."""
        one = self._format
        assert one is not None and self._end is not None, "a call has begun"
        if not self._may_be_call(one):
            return self._give_up(len(one.begin))
        length = self._end.feed(self._held[self._scanned :])
        if length is None and not last:
            self._scanned = len(self._held)
            return []
        size = len(self._held) if length is None else self._scanned + length
        try:
            calls = one.decode(self._held[0 if one.keeps_begin else len(one.begin) : size], self._schemas)
            if one.known_only and not all(call.name in self._schemas for call in calls):
                return self._give_up(size)
        except FAULTS:
            return self._give_up(size)
        self._held, self._format, self._close = self._held[size:], None, one.close
        return list[Part](calls)

    def _may_be_call(self, one: CallFormat) -> bool:
        body = self._held[len(one.begin) :].lstrip()
        return not body or not one.first or body[0] in one.first

    def _give_up(self, size: int) -> list[Part]:
        text, self._held, self._format = self._held[:size], self._held[size:], None
        return self._say(self._space + text)

    def _say(self, text: str) -> list[Part]:
        self._said = self._said or bool(text.strip())
        return [Said(text)] if text else []
