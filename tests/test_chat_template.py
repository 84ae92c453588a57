"""Chat templates: what Hugging Face's own renderer gives, inside a sandbox."""

import re

import pytest

from common.api import Message, TextPart
from common.errors import RequestError, StartError
from edge.chat_template import ChatTemplate

CHATML = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}\n"
    "{{ '<|' + message.role + '|>' + message.content + eos_token }}{% endfor %}\n"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HELLO = [Message("system", "Be brief."), Message("user", "Hello")]


def render(source: str, messages: list[Message] = HELLO, add_generation_prompt: bool = True) -> str:
    return ChatTemplate(source, "<s>", "</s>").render(messages, add_generation_prompt)


def test_a_conversation_is_rendered_with_block_lines_trimmed() -> None:
    assert render(CHATML) == "<s><|system|>Be brief.</s><|user|>Hello</s><|assistant|>"


def test_the_generation_prompt_is_left_out_when_not_wanted() -> None:
    assert render(CHATML, add_generation_prompt=False) == "<s><|system|>Be brief.</s><|user|>Hello</s>"


def test_text_parts_are_one_text() -> None:
    parts = [Message("user", [TextPart("text", "Hel"), TextPart("text", "lo")])]
    assert render(CHATML, parts) == render(CHATML, [Message("user", parts[0].text)])


def test_braces_in_a_message_stay_text() -> None:
    assert "{{ 7 * 7 }}" in render(CHATML, [Message("user", "{{ 7 * 7 }}")])


def test_what_templates_expect_is_there() -> None:
    source = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
        "{{ strftime_now('%Y') }}{% if tools is none and not name is defined %}!{% endif %}"
    )
    assert re.fullmatch(r'\{"role": "user", "content": "<é>"\}\d{4}!', render(source, [Message("user", "<é>")] * 2))


def test_a_name_reaches_the_template_only_when_given() -> None:
    source = "{% for m in messages %}{{ m.name is defined }} {{ m.name }};{% endfor %}"
    assert render(source, [Message("user", "a", name="Ann"), Message("user", "b")]) == "True Ann;False ;"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[9]['content'] }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    ],
)
def test_a_template_that_fails_or_breaks_out_is_a_refusal(source: str) -> None:
    with pytest.raises(RequestError) as refusal:
        render(source)
    assert refusal.value.param == "messages"


def test_the_template_says_why_it_refuses() -> None:
    with pytest.raises(RequestError, match="no tools here"):
        render(CHATML, [Message("tool", "42")])


def test_no_messages_are_a_refusal() -> None:
    with pytest.raises(RequestError):
        render(CHATML, [])


def test_a_template_that_is_no_jinja_cannot_start() -> None:
    with pytest.raises(StartError, match="line 1"):
        ChatTemplate("{% for %}", "", "")
