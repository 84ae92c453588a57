"""What the text of an answer consists of, and the interface of all that take it apart."""

from typing import NamedTuple, Protocol


class Said(NamedTuple):
    """Text for the person who asked."""

    text: str


class Thought(NamedTuple):
    """Text that the model wrote for itself before it answered."""

    text: str


class ToolCall(NamedTuple):
    """A complete call; `arguments` is a JSON object as text. The server gives it an id."""

    name: str
    arguments: str
    id: str = ""


Part = Said | Thought | ToolCall


class AnswerReader(Protocol):
    """Takes one answer apart as its text arrives; the parts, texts of one kind joined, do not depend on the cuts."""

    @property
    def thinking(self) -> bool:
        """Whether the text so far ends within a thought."""
        ...

    def feed(self, text: str) -> list[Part]: ...

    def end(self) -> list[Part]:
        """What was held back, when the answer has ended."""
        ...


class TextReader:
    """Of a model without thoughts, for a request without tools: all is said."""

    thinking = False

    def feed(self, text: str) -> list[Part]:
        return [Said(text)] if text else []

    def end(self) -> list[Part]:
        return []
