"""Reads the thoughts that begin an answer, up to their end marker; what follows is read by another reader."""

from edge.text import markers
from edge.tool_calls.parts import AnswerReader, Part, Thought


class ThoughtReader:
    """One answer. `inside`: the prompt has begun the thought already. White space around a thought is no text."""

    def __init__(self, begin: str, end: str, inside: bool, answer: AnswerReader) -> None:
        self._begin = begin
        self._end = end
        self._answer = answer
        self._inside: bool | None = inside or None
        """None: nothing but white space so far, and perhaps a part of the begin marker; False: the answer proper."""
        self._blank = True
        """Of the thought, or of the answer after it: nothing but white space so far."""
        self._held = ""

    @property
    def thinking(self) -> bool:
        return self._inside is True

    def feed(self, text: str) -> list[Part]:
        if self._inside is False:
            return self._rest(text)
        self._held += text
        if self._inside is None:
            body = self._held.lstrip()
            if self._begin.startswith(body) and body != self._begin:
                return []
            if not body.startswith(self._begin):
                return self._leave(self._held, blank=False)
            self._inside, self._held = True, body[len(self._begin) :]
        return self._think()

    def end(self) -> list[Part]:
        held, self._held = self._held, ""
        if self._inside:
            thought = held.rstrip()
            return [Thought(thought)] if thought else []
        return [*self._answer.feed(held), *self._answer.end()]

    def _think(self) -> list[Part]:
        at = self._held.find(self._end)
        open_end = markers.unfinished(self._held, [self._end])
        thought = self._held[: len(self._held) - open_end if at < 0 else at]
        if self._blank:
            thought = thought.lstrip()
        rest = self._held[at + len(self._end) :]
        thought, self._held = self._split(thought, open_end)
        self._blank = self._blank and not thought
        parts: list[Part] = [Thought(thought)] if thought else []
        return parts if at < 0 else [*parts, *self._leave(rest, blank=True)]

    def _split(self, thought: str, open_end: int) -> tuple[str, str]:
        """What of the thought may be given, and what is held: it ends without white space."""
        given = thought.rstrip()
        return given, thought[len(given) :] + self._held[len(self._held) - open_end :]

    def _leave(self, text: str, blank: bool) -> list[Part]:
        self._inside, self._blank, self._held = False, blank, ""
        return self._rest(text)

    def _rest(self, text: str) -> list[Part]:
        if self._blank:
            text = text.lstrip()
            self._blank = not text
        return self._answer.feed(text) if text else []
