"""Chooses how an answer is read: by what the chat template, which wrote the prompt, says of thoughts and calls."""

from collections.abc import Sequence
from dataclasses import dataclass

from edge.tool_calls import harmony_reader
from edge.tool_calls.call_format import CallFormat, Schemas
from edge.tool_calls.call_reader import CallReader
from edge.tool_calls.gemma_calls import FUNCTION_GEMMA, GEMMA
from edge.tool_calls.harmony_reader import HarmonyReader
from edge.tool_calls.json_calls import HERMES, LLAMA, MISTRAL
from edge.tool_calls.parts import AnswerReader, TextReader
from edge.tool_calls.python_calls import LFM2
from edge.tool_calls.tagged_calls import QWEN_CODER
from edge.tool_calls.thought_reader import ThoughtReader

FORMATS = {
    "<function=": QWEN_CODER,
    "<|tool_list_start|>": LFM2,
    "<|tool_call_start|>": LFM2,
    "<|tool_call>": GEMMA,
    "<start_function_call>": FUNCTION_GEMMA,
    "[TOOL_CALLS]": MISTRAL,
    "<tool_call>": HERMES,
    "<|python_tag|>": LLAMA,
    '"parameters": dictionary': LLAMA,
}
"""The formats of calls by a text that only templates of the family contain; the first that is found counts."""
THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|channel>thought", "<channel|>"))
HARMONY = "<|channel|>"


@dataclass(frozen=True)
class ReadingRule:
    """How the answers to one prompt are read; `marks`: texts that the reader looks for, with special tokens in them."""

    marks: tuple[str, ...]
    schemas: Schemas
    formats: tuple[CallFormat, ...] = ()
    thoughts: tuple[str, str] | None = None
    inside: bool = False
    """The prompt has begun a thought."""
    harmony: bool = False

    def shows(self, special: str) -> bool:
        """Whether the reader needs to see the text of this special token."""
        return any(special in mark for mark in self.marks)

    @property
    def end_of_thought(self) -> str:
        """What ends a thought; empty for a family without thoughts."""
        return harmony_reader.END_OF_THOUGHT if self.harmony else self.thoughts[1] if self.thoughts else ""

    def reader(self) -> AnswerReader:
        """A reader for one answer."""
        if self.harmony:
            return HarmonyReader(calls=bool(self.schemas))
        answer = CallReader(self.formats, self.schemas) if self.formats else TextReader()
        return ThoughtReader(*self.thoughts, self.inside, answer) if self.thoughts else answer


PLAIN = ReadingRule((), {})
"""All is text."""


def rule(template: str, prompt: str, schemas: Schemas, restricted: Sequence[CallFormat] | None = None) -> ReadingRule:
    """For the answers to `prompt`, written by `template`. Without schemas no call is looked for.

    `restricted`: the formats of calls that a grammar leaves the model, whatever its family; it then cannot think.
    """
    if restricted is not None:
        return ReadingRule((), schemas, tuple(restricted))
    if HARMONY in template:
        return ReadingRule(harmony_reader.TOKENS, schemas, harmony=True)
    formats = formats_of(template) if schemas else ()
    thoughts = next((pair for pair in THOUGHTS if pair[1] in template), None)
    marks = [*(thoughts or ()), *(mark for one in formats for mark in (one.begin, one.close, *one.inner))]
    inside = thoughts is not None and prompt.rstrip().endswith(thoughts[0])
    return ReadingRule(tuple(marks), schemas, tuple(formats), thoughts, inside)


def formats_of(template: str) -> Sequence[CallFormat]:
    """The formats of the template's family; that of Hermes, which most models know, where the template has no calls."""
    return next((formats for mark, formats in FORMATS.items() if mark in template), HERMES)
