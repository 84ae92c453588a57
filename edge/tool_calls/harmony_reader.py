"""Reads the answers of gpt-oss, which are messages on channels: thoughts, calls to a recipient, the final text.

The format is described in OpenAI's harmony guide.
"""

import re

from edge.text import markers
from edge.tool_calls.call_format import FAULTS, call, loads
from edge.tool_calls.parts import Part, Said, Thought

MESSAGE = "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
TOKENS = ("<|start|>", "<|channel|>", "<|constrain|>", MESSAGE, *ENDS)
END_OF_THOUGHT = f"<|end|><|start|>assistant<|channel|>final{MESSAGE}"
HEADERS = ("<|", "to=")
"""What the header of an answer's first message may begin with, after the prompt's `<|start|>assistant`."""
RECIPIENT = re.compile(r"to=functions\.([^\s<]+)")


class HarmonyReader:
    """One answer; `calls`: the request has tools, so messages to functions are calls, else they are thoughts."""

    def __init__(self, calls: bool) -> None:
        self._calls = calls
        self._held = ""
        self._header = ""
        """Of the message that is read."""
        self._body = False
        """Whether its header is complete."""
        self._plain: bool | None = None
        """Whether the answer has no messages at all; None: not known yet."""

    @property
    def thinking(self) -> bool:
        called = self._calls and RECIPIENT.search(self._header)
        return self._body and not (called or self._spoken)

    def feed(self, text: str) -> list[Part]:
        self._held += text
        return self._read(last=False)

    def end(self) -> list[Part]:
        return self._read(last=True)

    def _read(self, last: bool) -> list[Part]:
        if self._plain is None and not self._decide(last):
            return []
        parts, before = list[Part](), -1
        while self._held and len(self._held) != before:
            before = len(self._held)
            parts += self._step(last)
        return parts

    def _decide(self, last: bool) -> bool:
        """Whether it is known if there are messages."""
        body = self._held.lstrip()
        if not last and any(begin.startswith(body) for begin in HEADERS):
            return False
        self._plain = not body.startswith(HEADERS)
        return True

    def _step(self, last: bool) -> list[Part]:
        if self._plain:
            text, self._held = self._held, ""
            return [Said(text)]
        if self._body:
            return self._content(last)
        header, found, rest = self._held.partition(MESSAGE)
        if found:
            self._header, self._body, self._held = header, True, rest
        elif last:
            self._held = ""  # a message without content
        return []

    def _content(self, last: bool) -> list[Part]:
        """The content of a message up to its end; that of a call in whole."""
        found = markers.first(self._held, [*ENDS, "<|start|>"])
        recipient = RECIPIENT.search(self._header) if self._calls else None
        if found is None and not last:
            size = 0 if recipient else len(self._held) - markers.unfinished(self._held, [*ENDS, "<|start|>"])
        else:
            size = len(self._held) if found is None else found[0]
        content, self._held = self._held[:size], self._held[size:]
        if found is not None:
            self._body, self._held = False, self._held.removeprefix(found[1])
        return self._part(content, recipient) if content else []

    def _part(self, content: str, recipient: re.Match[str] | None) -> list[Part]:
        if recipient:
            try:
                return [call(recipient[1], loads(content))]
            except FAULTS:
                return [Said(content)]
        return [Said(content) if self._spoken else Thought(content)]

    @property
    def _spoken(self) -> bool:
        """Whether the message is for the person who asked."""
        return "final" in self._header or ("commentary" in self._header and "to=" not in self._header)
