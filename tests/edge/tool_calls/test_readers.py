"""Thoughts, the channels of gpt-oss, and the choice of a reader by the template: the same parts, however cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.tool_calls.families import PLAIN, ReadingRule, formats_of, rule
from edge.tool_calls.gemma_calls import FUNCTION_GEMMA, GEMMA
from edge.tool_calls.harmony_reader import HarmonyReader
from edge.tool_calls.json_calls import HERMES, LLAMA, MISTRAL
from edge.tool_calls.parts import Part, Said, Thought, ToolCall
from edge.tool_calls.python_calls import LFM2
from edge.tool_calls.tagged_calls import QWEN_CODER
from tests.edge.tool_calls.test_formats import cut, read

SCHEMAS = {"f": {"properties": {"a": {"type": "integer"}}}}
THINKS = "{% if x %}<think></think>{% endif %}<tool_call>"
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
F = ToolCall("f", '{"a": 1}')
places = st.lists(st.integers(0, 10**6), max_size=8)


@pytest.mark.parametrize(
    ("prompt", "text", "parts"),
    [
        ("", "<think>\nHm, yes.\n</think>\n\nYes.", [Thought("Hm, yes."), Said("Yes.")]),
        ("assistant\n<think>\n", "Hm, yes.\n</think>\n\nYes.", [Thought("Hm, yes."), Said("Yes.")]),
        ("assistant\n<think>\n\n</think>\n\n", "Yes.", [Said("Yes.")]),
        ("", "Write <think> before it.", [Said("Write <think> before it.")]),
        ("", "\n <thin", [Said("\n <thin")]),
        ("", "<think>cut o", [Thought("cut o")]),
        ("", "<think>cut off\n</thi", [Thought("cut off\n</thi")]),
        ("<think>", "</think>Yes.", [Said("Yes.")]),
        ("<think>", "I call.</think>\n" + CALL, [Thought("I call."), F]),
        ("<think>", f"First {CALL} then.</think> Now. {CALL}", [Thought(f"First {CALL} then."), Said("Now."), F]),
        ("", CALL, [F]),
    ],
)
@given(at=places)
def test_thoughts_are_apart_from_the_answer(prompt: str, text: str, parts: list[Part], at: list[int]) -> None:
    reading = rule(THINKS, prompt, SCHEMAS)
    assert read(reading.reader(), cut(text, at)) == parts


@given(st.text("<think>/ a\n", max_size=40), places)
def test_no_text_is_lost_or_depends_on_cuts_beside_thoughts(text: str, at: list[int]) -> None:
    reading = rule(THINKS, "", {})
    parts = read(reading.reader(), cut(text, at))
    assert parts == read(reading.reader(), [text])
    if not any(isinstance(part, Thought) for part in parts) and "<think>" not in text:
        assert parts == ([Said(text)] if text else [])


FINAL = "<|channel|>final<|message|>Yes.<|return|>"
ANALYSIS = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
COMMENTARY = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (FINAL, [Said("Yes.")]),
        (ANALYSIS + FINAL, [Thought("Hm."), Said("Yes.")]),
        (ANALYSIS + COMMENTARY, [Thought("Hm."), F]),
        (' to=functions.f<|channel|>commentary json<|message|>{"a": 1}<|call|>', [F]),
        ("<|channel|>commentary<|message|>I look.<|end|><|start|>assistant" + COMMENTARY, [Said("I look."), F]),
        (COMMENTARY + "<|start|>assistant" + COMMENTARY, [F, F]),
        (COMMENTARY.replace("1}<|call|>", ""), [Said('{"a": ')]),
        ("<|channel|>commentary to=functions.f<|message|>a fault<|call|>", [Said("a fault")]),
        ("<|channel|>analysis<|message|>cut o", [Thought("cut o")]),
        ("<|channel|>analysis", []),
        ("Yes, at once.", [Said("Yes, at once.")]),
        ("to", [Said("to")]),
    ],
)
@given(at=places)
def test_channels_are_thoughts_calls_and_text(text: str, parts: list[Part], at: list[int]) -> None:
    assert read(HarmonyReader(calls=True), cut(text, at)) == parts


def test_without_tools_a_message_to_a_function_is_no_call() -> None:
    assert read(rule("<|channel|>", "", {}).reader(), [COMMENTARY + "<|start|>assistant" + FINAL]) == [
        Thought('{"a": 1}'),
        Said("Yes."),
    ]


@pytest.mark.parametrize(
    ("template", "formats"),
    [
        ("<tool_call>{{ call }}</tool_call>", HERMES),
        ("<tool_call><function=x></function></tool_call>", QWEN_CODER),
        ("<|python_tag|>", LLAMA),
        ('{"name": function name, "parameters": dictionary of argument name and its value}', LLAMA),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS]", MISTRAL),
        ("List of tools: <|tool_list_start|>[", LFM2),
        ("<|tool_call>call:", GEMMA),
        ("<start_function_call>call:", FUNCTION_GEMMA),
        ("<|user|>{{ message.content }}", HERMES),
    ],
)
def test_the_template_tells_the_format(template: str, formats: object) -> None:
    assert formats_of(template) is formats


def test_only_special_tokens_that_a_reader_looks_for_are_shown() -> None:
    gemma = rule('<|tool_call>call:<|"|> <|channel>thought\n<channel|>', "", SCHEMAS)
    assert all(gemma.shows(token) for token in ("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"))
    assert not any(gemma.shows(token) for token in ("<turn|>", "<eos>", "<bos>"))
    assert rule("<|channel|>", "", {}).shows("<|call|>")
    assert not PLAIN.shows("<think>")
    assert not rule(THINKS, "", {}).shows("<tool_call>"), "without tools nobody looks for calls"


@pytest.mark.parametrize(
    ("reading", "text", "thought"),
    [
        (rule(THINKS, "", {}), "<think>Hm, yes.</think>Yes.", "Hm, yes."),
        (rule(THINKS, "<think>", {}), "Hm, yes.</think>Yes.", "Hm, yes."),
        (rule("<|channel|>", "", {}), ANALYSIS + FINAL, "Hm."),
        (rule("<|channel|>", "", SCHEMAS), ANALYSIS + COMMENTARY, "Hm."),
        (PLAIN, "<think>Hm.</think>", ""),
    ],
)
def test_a_reader_tells_whether_it_is_within_a_thought(reading: ReadingRule, text: str, thought: str) -> None:
    reader, within = reading.reader(), ""
    for character in text:
        before = reader.thinking
        reader.feed(character)
        within += character if before and reader.thinking else ""
    end = reading.end_of_thought
    assert within == thought + end[: len(end) - 1 if thought and not reading.harmony else 0] or (
        reading.harmony and within.startswith(thought) and "Yes" not in within
    )
    if thought:
        reader = reading.reader()
        parts = [*reader.feed(text[: text.index(thought) + 2] + end), *reader.feed("Yes."), *reader.end()]
        assert parts[-1] == Said("Yes.") and not reader.thinking


@pytest.mark.parametrize("cut_at", range(1, len("</tool_call>")))
def test_a_forced_call_that_is_cut_off_in_its_end_tag_is_a_call(cut_at: int) -> None:
    text = CALL.removesuffix("</tool_call>") + "</tool_call>"[:cut_at]
    assert read(rule(THINKS, "", SCHEMAS, HERMES[:1]).reader(), list(text)) == [F]


def test_where_a_grammar_forces_calls_there_are_no_thoughts() -> None:
    reading = rule(THINKS, "<think>", SCHEMAS, HERMES[:1])
    assert read(reading.reader(), list(CALL)) == [F]
