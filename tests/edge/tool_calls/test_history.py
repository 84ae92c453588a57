"""Histories with tools, calls and results: written as transformers writes them, checked, or as text where need be."""

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common.errors import RequestError
from common.protocol.openai import Message
from edge.text.chat_template import ChatTemplate
from edge.text.conversation import Conversation

TEMPLATES = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))}
TEXT_ARGUMENTS = ("deepseek",)
"""Templates that want the arguments of a call as text."""
ONE_CALL = ("llama3.1",)
"""Templates that refuse parallel calls."""
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The weather "now" in a café',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where?"},
                "unit": {"type": "string", "enum": ["C", "F"]},
                "days": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["city"],
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock", "description": "The time"}}


def called(id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


PARIS = called("a1b2c3d4e", "get_weather", {"city": "Paris", "days": [1, 2], "unit": None, "deep": {"é": True}})
ROME = called("f6g7h8i9j", "get_weather", {"city": 'Rome "RM" </x>'})
QUESTION = {"role": "user", "content": "What is the weather?"}
RESULT = {"role": "tool", "tool_call_id": "a1b2c3d4e", "name": "get_weather", "content": '{"degrees": 22}'}
OTHER_RESULT = RESULT | {"tool_call_id": "f6g7h8i9j", "content": "rain"}
HISTORIES: dict[str, list[dict[str, Any]]] = {
    "question": [QUESTION],
    "system": [{"role": "system", "content": "Be brief."}, QUESTION],
    "call": [QUESTION, {"role": "assistant", "content": None, "tool_calls": [PARIS]}, RESULT],
    "call with text": [QUESTION, {"role": "assistant", "content": "I look.", "tool_calls": [PARIS]}, RESULT],
    "empty text": [QUESTION, {"role": "assistant", "content": "", "tool_calls": [ROME]}, OTHER_RESULT],
    "parallel": [QUESTION, {"role": "assistant", "content": "", "tool_calls": [PARIS, ROME]}, RESULT, OTHER_RESULT],
    "answered": [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [PARIS]},
        RESULT,
        {"role": "assistant", "content": "22 degrees."},
        {"role": "user", "content": "And tomorrow?"},
    ],
}


def theirs(name: str, source: str, messages: list[dict[str, Any]], prompt: bool, **variables: Any) -> str:
    """The text that transformers makes of the same conversation."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = copy.deepcopy(messages)
    for call in (call for message in messages for call in message.get("tool_calls", [])):
        if name not in TEXT_ARGUMENTS:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    rendered: tuple[list[str], Any] = render_jinja_template(
        conversations=[messages],
        chat_template=source,
        add_generation_prompt=prompt,
        bos_token="<s>",
        eos_token="</s>",
        **variables,
    )
    return rendered[0][0]


def ours(messages: list[dict[str, Any]], tools: Any = (), **variables: Any) -> Conversation:
    return Conversation(msgspec.convert(messages, list[Message]), tools or (), variables)


@pytest.mark.parametrize("name", TEMPLATES)
async def test_a_history_is_written_as_transformers_writes_it(name: str) -> None:
    source, compared = TEMPLATES[name], 0
    async with ChatTemplate(source, "<s>", "</s>") as template:
        for kind, messages in HISTORIES.items():
            if kind == "parallel" and name in ONE_CALL:
                continue
            for tools in (None, [WEATHER], [CLOCK, WEATHER]):
                for prompt in (True, False):
                    expected = theirs(name, source, messages, prompt, tools=tools)
                    assert await template.write(ours(messages, tools), prompt) == expected
                    assert tools is None or "get_weather" in expected
                    compared += 1
    assert compared >= 36


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("qwen3", {"enable_thinking": False}),
        ("gemma4", {"enable_thinking": True}),
        ("gpt-oss", {"reasoning_effort": "high"}),
    ],
)
async def test_variables_of_the_request_reach_the_template(name: str, variables: dict[str, Any]) -> None:
    source = TEMPLATES[name]
    async with ChatTemplate(source, "<s>", "</s>") as template:
        expected = theirs(name, source, [QUESTION], True, tools=None, **variables)
        assert await template.write(ours([QUESTION], **variables)) == expected
        assert await template.write(ours([QUESTION])) != expected


async def test_thoughts_in_the_history_reach_the_templates_that_keep_them() -> None:
    thinking = {"role": "assistant", "content": None, "tool_calls": [PARIS], "reasoning_content": "I must look."}
    for name, key in {"qwen3": "reasoning_content", "mistral-v11": "reasoning_content", "gpt-oss": "thinking"}.items():
        source = TEMPLATES[name]
        async with ChatTemplate(source, "<s>", "</s>") as template:
            text = await template.write(ours([QUESTION, thinking, RESULT], [WEATHER]))
            same = {**thinking, key: "I must look."}
            assert text == theirs(name, source, [QUESTION, same, RESULT], True, tools=[WEATHER])
            assert "I must look." in text


async def test_a_template_that_wants_text_gets_the_clients_own() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [PARIS]}
    async with ChatTemplate(
        "{{ 'a' + messages[1].tool_calls[0].function.arguments + 'b' }}"
        "{{ messages[1].tool_calls[0].function.arguments }}{{ messages[1].tool_calls[0].function.arguments ~ '' }}",
        "",
        "",
    ) as template:
        written = PARIS["function"]["arguments"]
        assert await template.write(ours([QUESTION, message])) == f"a{written}b{written}{written}"


PLAIN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"


async def test_a_template_without_tools_gets_them_and_the_history_as_text() -> None:
    calls = {"role": "assistant", "content": "I look.", "tool_calls": [PARIS, ROME]}
    async with ChatTemplate(PLAIN, "", "") as template:
        text = await template.write(ours([QUESTION, calls, RESULT, OTHER_RESULT], [WEATHER]))
    assert text.startswith("<|system|># Tools") and json.dumps(WEATHER, ensure_ascii=False) in text
    arguments = PARIS["function"]["arguments"]
    assert (
        f'I look.\n<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>\n<tool_call>' in text
    )
    assert text.endswith(
        '<|user|><tool_response>\n{"degrees": 22}\n</tool_response>\n'
        "<tool_response>\nrain\n</tool_response><|assistant|>"
    )
    assert "None" not in text


async def test_such_a_template_gets_the_tools_behind_the_clients_own_instructions() -> None:
    async with ChatTemplate(PLAIN, "", "") as template:
        text = await template.write(ours([{"role": "system", "content": "Be brief."}, QUESTION], [CLOCK]))
    assert text.startswith("<|system|>Be brief.\n\n# Tools")
    assert text.count("<|system|>") == 1


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([QUESTION, RESULT], "messages[1].tool_call_id"),
        ([QUESTION, {"role": "assistant", "tool_calls": [ROME]}, RESULT], "messages[2].tool_call_id"),
        ([QUESTION, {"role": "tool", "content": "22"}], "messages[1].tool_call_id"),
        ([QUESTION, {"role": "user"}], "messages[1].content"),
        ([{"role": "system", "content": None}, QUESTION], "messages[0].content"),
        ([QUESTION, {"role": "assistant", "tool_calls": []}], "messages[1].content"),
        (
            [QUESTION, {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]}],
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            [QUESTION, {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "1"}}]}],
            "messages[1].tool_calls[0].function.arguments",
        ),
    ],
)
async def test_a_history_that_contradicts_itself_is_refused_by_name(messages: Any, param: str) -> None:
    async with ChatTemplate(PLAIN, "", "") as template:
        with pytest.raises(RequestError) as refusal:
            await template.write(ours(messages))
    assert refusal.value.param == param


def test_a_variable_cannot_replace_a_field_of_the_request() -> None:
    for name in ("messages", "tools", "add_generation_prompt"):
        with pytest.raises(RequestError, match=name):
            Conversation([Message("user", "x")], (), {name: 1})


async def test_a_variable_of_any_name_is_harmless() -> None:
    async with ChatTemplate(PLAIN, "", "") as template:
        assert await template.write(ours([QUESTION], **{"self": 1, "not a name": 2, "": 3}))


TOOLS_AS_JSON = "{{ tools | tojson }}{{ messages[0].tool_calls }}"


@pytest.mark.parametrize("source", [PLAIN, TOOLS_AS_JSON], ids=["text", "template"])
async def test_tools_of_any_depth_are_written_or_refused(source: str) -> None:
    async with ChatTemplate(source, "", "") as template:
        for depth in range(1, 1200, 150):
            schema: dict[str, Any] = {}
            for _ in range(depth):
                schema = {"properties": schema}
            with contextlib.suppress(RequestError):
                assert await template.write(ours([QUESTION], [{"function": schema}]))
        assert await template.write(ours([QUESTION], [CLOCK]))
