"""Calls in each family's format: read as written, however the text is cut; what is malformed stays text."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge.tool_calls.call_format import CallFormat
from edge.tool_calls.call_reader import CallReader
from edge.tool_calls.gemma_calls import FUNCTION_GEMMA, GEMMA
from edge.tool_calls.json_calls import HERMES, LLAMA, MISTRAL
from edge.tool_calls.parts import AnswerReader, Part, Said, Thought, ToolCall
from edge.tool_calls.python_calls import LFM2
from edge.tool_calls.tagged_calls import QWEN_CODER

Arguments = dict[str, Any]
SCHEMAS = {
    "get_weather": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "f": {"properties": {"code": {"type": "string"}, "deep": {"type": "object"}}},
}


MARK = '<|"|>'


def quoted(value: Any, quote: str) -> str:
    """A value as Gemma writes it."""
    if isinstance(value, str):
        return quote + value + quote
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{quoted(one, quote)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(quoted(one, quote) for one in value) + "]"
    return json.dumps(value)


def tags(name: str, arguments: Arguments) -> str:
    texts = {key: one if isinstance(one, str) else json.dumps(one) for key, one in arguments.items()}
    inner = "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in texts.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


def hermes(name: str, arguments: Arguments) -> str:
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


def python(name: str, arguments: Arguments) -> str:
    inner = ", ".join(f"{key}={one!r}" for key, one in arguments.items())
    return f"<|tool_call_start|>[{name}({inner})]<|tool_call_end|>"


WRITERS = {
    "hermes": (HERMES, hermes),
    "hermes, fenced": (HERMES, lambda n, a: f"```json\n{json.dumps({'name': n, 'arguments': a})}\n```"),
    "qwen coder": (QWEN_CODER, tags),
    "qwen coder, bare": (QWEN_CODER, lambda n, a: tags(n, a).removeprefix("<tool_call>\n")),
    "llama": (LLAMA, lambda n, a: "<|python_tag|>" + json.dumps({"name": n, "parameters": a})),
    "mistral": (MISTRAL, lambda n, a: "[TOOL_CALLS]" + n + "[ARGS]" + json.dumps(a)),
    "mistral, with an id": (MISTRAL, lambda n, a: f"[TOOL_CALLS]{n}[CALL_ID]a1b2c3d4e[ARGS]{json.dumps(a)}"),
    "mistral, listed": (MISTRAL, lambda n, a: "[TOOL_CALLS] " + json.dumps([{"name": n, "arguments": a}])),
    "lfm2": (LFM2, python),
    "gemma": (GEMMA, lambda n, a: f"<|tool_call>call:{n}{quoted(a, MARK)}<tool_call|>"),
    "function gemma": (
        FUNCTION_GEMMA,
        lambda n, a: f"<start_function_call>call:{n}{quoted(a, '<escape>')}<end_function_call>",
    ),
}
WITH_PROSE = sorted(WRITERS)
ONLY_SURE = sorted(WRITERS.keys() - {"hermes, fenced", "qwen coder, bare"})

keys = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(lambda key: key not in ("None", "True", "False"))
letters = st.text(st.characters(codec="utf-8", exclude_characters="\r<>[]|\0"), max_size=20)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | letters
values = st.recursive(
    scalars, lambda one: st.lists(one, max_size=3) | st.dictionaries(keys, one, max_size=3), max_leaves=6
)
arguments_of_f = st.fixed_dictionaries(
    {}, optional={"code": letters, "deep": st.dictionaries(keys, values, max_size=3)}
)
calls = st.tuples(st.just("f"), arguments_of_f) | st.tuples(
    st.just("get_weather"), st.fixed_dictionaries({"city": letters}, optional={"days": st.integers(-9, 9)})
)


def read(reader: AnswerReader, pieces: Sequence[str]) -> list[Part]:
    """The parts, with texts of one kind that follow each other joined."""
    parts = list[Part]()
    for part in [*(part for piece in pieces for part in reader.feed(piece)), *reader.end()]:
        if parts and type(parts[-1]) is type(part) and not isinstance(part, ToolCall):
            assert isinstance(part, Said | Thought)
            parts[-1] = type(part)(parts[-1][0] + part.text)
        else:
            parts.append(part)
    return parts


def cut(text: str, places: Sequence[int]) -> list[str]:
    """The text cut at places, of which each is taken modulo its length."""
    at = sorted({place % (len(text) + 1) for place in places})
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


def parts_of(formats: Sequence[CallFormat], pieces: Sequence[str]) -> list[Part]:
    return read(CallReader(formats, SCHEMAS), pieces)


def found(parts: Sequence[Part]) -> list[tuple[str, Any]]:
    return [(part.name, json.loads(part.arguments)) for part in parts if isinstance(part, ToolCall)]


@pytest.mark.parametrize("writer", WRITERS)
@given(made=calls, places=st.lists(st.integers(0, 10**6), max_size=6))
def test_a_call_is_read_as_it_was_written_and_cuts_change_nothing(
    writer: str, made: tuple[str, Arguments], places: list[int]
) -> None:
    formats, write = WRITERS[writer]
    text = write(*made)
    assert found(parts_of(formats, cut(text, places))) == [made]
    assert not any(isinstance(part, Said) for part in parts_of(formats, list(text)))


@pytest.mark.parametrize("writer", WITH_PROSE)
@given(made=st.lists(calls, min_size=2, max_size=3), places=st.lists(st.integers(0, 10**6), max_size=6))
def test_parallel_calls_are_read_in_order(writer: str, made: list[tuple[str, Arguments]], places: list[int]) -> None:
    formats, write = WRITERS[writer]
    text = ("; " if writer == "llama" else "\n").join(write(*one) for one in made)
    assert found(parts_of(formats, cut(text, places))) == made


@pytest.mark.parametrize("writer", sorted(WRITERS))
@given(made=calls)
def test_text_around_a_call_is_kept_without_the_white_space_that_parts_them(
    writer: str, made: tuple[str, Arguments]
) -> None:
    formats, write = WRITERS[writer]
    pieces = list(f"Let me see.\n\n{write(*made)}\n\nDone.")
    before, call, after = parts_of(formats, pieces)
    assert (before, found([call]), after) == (Said("Let me see."), [made], Said("Done."))


@pytest.mark.parametrize("writer", ONLY_SURE)
@given(made=calls, size=st.integers(0, 10**6), places=st.lists(st.integers(0, 10**6), max_size=6))
def test_a_call_that_is_cut_off_reaches_the_client_as_the_text_it_is(
    writer: str, made: tuple[str, Arguments], size: int, places: list[int]
) -> None:
    formats, write = WRITERS[writer]
    text = write(*made)
    part = "So: " + text[: size % len(text)]
    parts = parts_of(formats, cut(part, places))
    assert parts == [Said(part)] or found(parts) == [made]  # the end marker may be all that is missing


@pytest.mark.parametrize("writer", WRITERS)
@given(st.text(max_size=60), st.text(max_size=60), calls, st.lists(st.integers(0, 10**6), max_size=8))
@example("", '"}', ("f", {}), [])
def test_whatever_a_model_writes_nothing_is_lost_and_every_call_has_json_arguments(
    writer: str, before: str, inside: str, made: tuple[str, Arguments], places: list[int]
) -> None:
    formats, write = WRITERS[writer]
    text = write(*made)
    text = before + text[: len(text) // 2] + inside + text[len(text) // 2 :]
    parts = parts_of(formats, cut(text, places))
    assert parts == parts_of(formats, [text])
    assert all(isinstance(arguments, dict) for _, arguments in found(parts))
    if not found(parts):
        assert "".join(part.text for part in parts if isinstance(part, Said)) == text


@pytest.mark.parametrize(
    ("formats", "text"),
    [
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": NaN}}\n</tool_call>'),
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": 1e999}}\n</tool_call>'),
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": "\\ud800"}}\n</tool_call>'),
        (HERMES, '<tool_call>\n{"name": "f", "arguments": ' + '{"a":' * 5000 + "1" + "}" * 5001 + "\n</tool_call>"),
        (HERMES, '<tool_call>\n{"name": "f", "arguments": [1]}\n</tool_call>'),
        (HERMES, '<tool_call>\n{"name": 5, "arguments": {}}\n</tool_call>'),
        (HERMES, '<tool_call>\n{"arguments": {}}\n</tool_call>'),
        (HERMES, "Write <tool_call> before a call."),
        (HERMES, '{"name": "unheard_of", "arguments": {}}'),
        (HERMES, 'Like this: ```json\n{"name": "unheard_of", "arguments": {}}\n```'),
        (LLAMA, '{"name": "Ann", "parameters": {}}'),
        (QWEN_CODER, "<tool_call>\n<function=f>\nfree text\n</function>\n</tool_call>"),
        (QWEN_CODER, "<tool_call>\n<function=f>\n<parameter=a>\n1\n</function>\n</tool_call>"),
        (LFM2, "<|tool_call_start|>[f(a=__import__('os'))]<|tool_call_end|>"),
        (LFM2, "<|tool_call_start|>[f(1)]<|tool_call_end|>"),
        (LFM2, "<|tool_call_start|>[f(**{})]<|tool_call_end|>"),
        (LFM2, "<|tool_call_start|>[f(a=1)<|tool_call_end|>"),
        (LFM2, "<|tool_call_start|>[f(a=" + "(" * 9000 + "1" + ")" * 9000 + ")]<|tool_call_end|>"),
        (LFM2, "<|tool_call_start|>[f(a={1: 2})]<|tool_call_end|>"),
        (LFM2, "<|tool_call_start|>[f(a=b'x')]<|tool_call_end|>"),
        (GEMMA, '<|tool_call>call:f{a:<|"|>x}<tool_call|>'),
        (GEMMA, "<|tool_call>call:f<tool_call|>"),
        (MISTRAL, "[TOOL_CALLS]f"),
        (MISTRAL, '[TOOL_CALLS] [{"name": "f"}]'),
    ],
)
def test_a_malformed_call_is_text(formats: Sequence[CallFormat], text: str) -> None:
    assert parts_of(formats, [text]) == [Said(text)]
    assert parts_of(formats, list(text)) == [Said(text)]


def test_an_argument_is_read_as_its_schema_wants_it() -> None:
    schemas = {
        "f": {
            "properties": {
                "text": {"type": "string"},
                "number": {"type": "number"},
                "flag": {"type": "boolean"},
                "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                "word": {"enum": ["1", "2"]},
            }
        }
    }
    written = {
        "text": "12",
        "number": "1.5",
        "flag": "True",
        "maybe": "None",
        "word": "1",
        "other": "[1, 2]",
        "odd": "x",
    }
    (part,) = read(CallReader(QWEN_CODER, schemas), [tags("f", written)])
    wanted = {"text": "12", "number": 1.5, "flag": True, "maybe": None, "word": "1", "other": [1, 2], "odd": "x"}
    assert found([part]) == [("f", wanted)]


def test_code_in_an_argument_is_no_end_of_the_call() -> None:
    code = 'print("</tool_call>")\nx = {"a": [1]}\n# <tool_call>'
    assert found(parts_of(HERMES, list(hermes("f", {"code": code})))) == [("f", {"code": code})]
