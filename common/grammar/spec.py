"""What restricts a structured answer, as it travels in a request's sampling parameters."""

from enum import StrEnum

from msgspec import Struct


class GrammarKind(StrEnum):
    """The kinds of grammars, with the names of vLLM's `structured_outputs`."""

    JSON = "json"
    """A JSON schema."""
    REGEX = "regex"
    """A regular expression in Rust's syntax."""
    CHOICE = "choice"
    """A JSON list of texts."""
    GRAMMAR = "grammar"
    """A grammar in Lark's notation, or in llama.cpp's (GBNF)."""


NOUNS = {
    GrammarKind.JSON: "this JSON schema",
    GrammarKind.REGEX: "this expression",
    GrammarKind.CHOICE: "this choice",
    GrammarKind.GRAMMAR: "this grammar",
}


class GrammarSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole answer must match `text`."""

    kind: GrammarKind
    text: str

    @property
    def noun(self) -> str:
        """What errors call it."""
        return NOUNS[self.kind]

    @property
    def param(self) -> str:
        """The request field that errors name."""
        return "response_format" if self.kind is GrammarKind.JSON else "structured_outputs"


ANY_OBJECT = GrammarSpec(GrammarKind.JSON, '{"type":"object"}')
