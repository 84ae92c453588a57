"""Chat templates: rendered as Hugging Face does, inside a sandbox."""

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest

from common.errors import EngineError, RequestError, StartError
from common.protocol.content.openai_content import ContentPart
from common.protocol.openai import Message
from common.protocol.openai_tools import CalledFunction, MessageToolCall
from edge.text import chat_template
from edge.text.chat_template import ChatTemplate
from edge.text.template_process import compiled

CHATML = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}\n"
    "{{ '<|' + message.role + '|>' + message.content + eos_token }}{% endfor %}\n"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HELLO = [Message("system", "Be brief."), Message("user", "Hello")]


CALLING = Message("assistant", tool_calls=[MessageToolCall(CalledFunction("f", "{}"), "1")])
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


async def render(source: str, messages: list[Message] = HELLO, add_generation_prompt: bool = True) -> str:
    async with ChatTemplate(source, "<s>", "</s>") as template:
        return await template.render(messages, add_generation_prompt)


async def test_a_conversation_is_rendered_with_block_lines_trimmed() -> None:
    assert await render(CHATML) == "<s><|system|>Be brief.</s><|user|>Hello</s><|assistant|>"


async def test_the_generation_prompt_is_left_out_when_not_wanted() -> None:
    assert await render(CHATML, add_generation_prompt=False) == "<s><|system|>Be brief.</s><|user|>Hello</s>"


async def test_text_parts_are_one_text() -> None:
    parts = [Message("user", [ContentPart("text", "Hel"), ContentPart("text", "lo")])]
    assert await render(CHATML, parts) == await render(CHATML, [Message("user", parts[0].text)])


async def test_braces_in_a_message_stay_text() -> None:
    assert "{{ 7 * 7 }}" in await render(CHATML, [Message("user", "{{ 7 * 7 }}")])


async def test_the_functions_that_templates_expect_exist() -> None:
    source = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
        "{{ strftime_now('%Y') }}{% if tools is none and not name is defined %}!{% endif %}"
    )
    assert re.fullmatch(
        r'\{"role": "user", "content": "<é>"\}\d{4}!', await render(source, [Message("user", "<é>")] * 2)
    )


async def test_a_name_reaches_the_template_only_when_given() -> None:
    source = "{% for m in messages %}{{ m.name is defined }} {{ m.name }};{% endfor %}"
    assert await render(source, [Message("user", "a", name="Ann"), Message("user", "b")]) == "True Ann;False ;"


THINKING = """
{%- set ns = namespace(last=0) -%}
{%- for m in messages[::-1] if m.role == 'user' and not m.content.startswith('<tool_response>') -%}
    {%- if not loop.first %}{% break %}{% endif -%}
    {%- set ns.last = (messages | length - 1) - loop.index0 -%}
{%- endfor -%}
{%- for m in messages -%}
    {%- if m.role == 'assistant' and '</think>' in m.content and loop.index0 < ns.last -%}
        {{- '[' ~ m.content.split('</think>')[-1].lstrip('\n') ~ ']' -}}
    {%- else -%}
        {{- '[' + m.content | trim + ']' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false -%}
    {{- '<think></think>' -}}
{%- endif -%}
"""
TOOLS = """
{%- macro described(properties) -%}
    {%- for name, schema in properties | dictsort -%}{{ name }}: {{ schema.type | default('any') }};{%- endfor -%}
{%- endmacro -%}
{%- if tools -%}
    {%- set shown %}{% for tool in tools %}{{ tool | tojson(indent=2) }}{% endfor %}{% endset -%}
    {{- shown | length > 0 and '# Tools ' -}}
    {{- described(tools[0].function.parameters.properties) -}}
{%- endif -%}
{%- for m in messages -%}
    {%- if m.tool_calls is defined and m.tool_calls is iterable -%}
        {%- for call in m.tool_calls if call.function is mapping -%}
            {{- call.function.name -}}(
            {%- for key, value in call.function.arguments.items() -%}
                {{- key -}}={{ value if value is string else value | tojson -}}
                {%- if not loop.last %}, {% endif -%}
            {%- endfor -%})
        {%- endfor -%}
    {%- elif m.role == 'tool' -%}
        {{- ' -> ' + (m.content | from_json).degrees | string -}}
    {%- endif -%}
{%- endfor -%}
"""
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"b": {}, "a": {"type": "string"}}}}}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": "é", "b": [1, None]}}}]}


async def test_thoughts_of_earlier_turns_are_left_out_where_the_template_does_so() -> None:
    thought = Message("assistant", "<think>hm</think>\n\nHi ")
    conversation = [Message("user", " a "), thought, Message("user", "b"), thought]
    assert await render(THINKING, conversation) == "[a][Hi ][b][<think>hm</think>\n\nHi]"
    assert compiled(THINKING, "", "").render(
        messages=[{"role": "user", "content": "a"}], add_generation_prompt=True, enable_thinking=False
    ) == ("[a]<think></think>")


def test_tools_calls_and_their_results_reach_the_template() -> None:
    result = {"role": "tool", "content": '{"degrees": 22}'}
    text = compiled(TOOLS, "", "").render(tools=[TOOL], messages=[CALL, result])
    assert text == "# Tools " + "a: string;b: any;" + "f(a=é, b=[1, null])" + " -> 22"
    assert compiled(TOOLS, "", "").render(messages=[{"role": "user", "content": "a"}]) == ""


async def test_a_turn_that_is_marked_for_training_is_rendered_like_any_other() -> None:
    source = (
        "{% set own = 1 %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% generation %}{% set own = 2 %}<{{ m.content }}{{ own }}>{% endgeneration %}{% endif %}{% endfor %}{{ own }}"
    )
    assert await render(source) == "<Hello2>1"


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("{'b': 'é', 'a': 1} | tojson", '{"b": "é", "a": 1}'),
        ("{'b': 'é'} | tojson(ensure_ascii=true)", '{"b": "\\u00e9"}'),
        ("{'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true)", '{"a":2,"b":1}'),
        ("messages | map(attribute='role') | tojson", '["system", "user"]'),
        ("messages | selectattr('role', 'equalto', 'user') | list | tojson(indent=1)", None),
        ("('{\"a\": [1]}' | from_json).a", "[1]"),
    ],
)
async def test_json_is_written_and_read_as_templates_expect(expression: str, text: str | None) -> None:
    expected = text or '[\n {\n  "role": "user",\n  "content": "Hello"\n }\n]'
    assert await render("{{ " + expression + " }}") == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ missing | tojson }}",
        "{{ 'not JSON' | from_json }}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[9]['content'] }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    ],
)
async def test_a_template_that_fails_or_breaks_out_is_a_refusal(source: str) -> None:
    with pytest.raises(RequestError) as refusal:
        await render(source)
    assert refusal.value.param == "messages"


async def test_a_refusal_carries_the_templates_own_message() -> None:
    with pytest.raises(RequestError, match="no tools here"):
        await render(CHATML, [CALLING, Message("tool", "42", tool_call_id="1")])


async def test_no_messages_are_a_refusal() -> None:
    with pytest.raises(RequestError):
        await render(CHATML, [])


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'a' | nothing }}"])
async def test_a_template_that_is_not_valid_jinja_cannot_start(source: str) -> None:
    with pytest.raises(StartError, match="line 1"):
        await render(source)


@pytest.mark.parametrize(
    "bomb",
    [
        ENDLESS,
        "{{ 'a' * 10**10 }}",
        "{{ messages[0].content * 10**8 }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ (messages[0].content * 10**7) | tojson }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{{ '\\ud800' }}",
    ],
)
async def test_a_template_that_would_never_end_or_fill_memory_is_a_refusal_and_the_next_prompt_is_rendered(
    bomb: str,
) -> None:
    source = "{% if messages[0].role == 'user' %}" + bomb + "{% else %}fine{% endif %}"
    async with ChatTemplate(source, "", "", seconds=0.3) as template:
        with pytest.raises(RequestError, match="refuses"):
            await template.render([Message("user", "bomb")])
        assert await template.render([Message("system", "x")]) == "fine"


async def test_without_the_limit_such_a_template_does_not_end_and_closing_ends_it() -> None:
    async with ChatTemplate(ENDLESS, "", "", seconds=600) as template:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(template.render(HELLO), 1.5)
        assert not renderers()


async def test_the_event_loop_runs_while_a_template_is_busy() -> None:
    async with ChatTemplate(ENDLESS, "", "", seconds=0.5) as template:
        busy = asyncio.create_task(template.render(HELLO))
        ticks = 0
        while not busy.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks > 2  # a loop that stands still meanwhile turns twice: once before, once after
        with pytest.raises(RequestError, match=r"no end in 0\.5 s"):
            await busy


async def test_a_stopped_process_is_an_error_after_a_while_and_the_next_prompt_is_rendered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its limit is on processor time, of which a stopped process uses none."""
    async with ChatTemplate(CHATML, "", "") as template:
        truth = await template.render(HELLO)
        monkeypatch.setattr(chat_template, "LOST_SECONDS", 0.3)
        (process,) = renderers()
        os.kill(process, signal.SIGSTOP)
        with pytest.raises(EngineError, match=r"has not answered for 0\.3 s"):
            await template.render(HELLO)
        monkeypatch.setattr(chat_template, "LOST_SECONDS", 30.0)
        assert await template.render(HELLO) == truth
        assert process not in renderers()


async def test_concurrent_conversations_are_rendered_separately() -> None:
    async with ChatTemplate(CHATML, "", "") as template:
        texts = await asyncio.gather(*(template.render([Message("user", str(i))], False) for i in range(20)))
    assert texts == [f"<|user|>{i}" for i in range(20)]
    assert not renderers()


def renderers() -> list[int]:
    """The process ids of this process's template processes."""
    children = Path("/proc/self/task").glob("*/children")
    ids = [int(word) for path in children for word in path.read_text().split()]
    return [i for i in ids if b"template_process" in Path(f"/proc/{i}/cmdline").read_bytes()]
