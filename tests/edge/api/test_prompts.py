"""Prompts become token ids: what cannot fit is refused untokenized, and a long text does not block the event loop."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import ContextLengthError, RequestError
from common.protocol.openai import CompletionRequest, Message
from common.protocol.tokenization import LONGEST_TOKEN
from edge.api import prompts
from edge.engine.text_model import SHORT_TEXT, TextModel
from edge.text.conversation import Conversation


class LetterEngine:
    """One token for each letter; records the thread of each call."""

    context_length = 100
    vocab_size = 50
    chat_template: str | None = None
    check_ids = TextModel.check_ids

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        self.threads.append(threading.current_thread())
        return [1] * len(text)


@pytest.fixture
def model() -> Any:
    return SimpleNamespace(engine=LetterEngine(), context_length=100)


async def test_a_text_that_cannot_fit_is_refused_untokenized(model: Any) -> None:
    with pytest.raises(ContextLengthError):
        await prompts.tokenize(model, "x" * (100 * LONGEST_TOKEN + 1))
    assert model.engine.threads == []


async def test_a_long_text_is_tokenized_in_another_thread_and_a_short_one_in_the_event_loop(model: Any) -> None:
    for size in (SHORT_TEXT, SHORT_TEXT + 1):
        assert len(await prompts.tokenize(model, "x" * size)) == size
    assert [thread is threading.main_thread() for thread in model.engine.threads] == [True, False]


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("", None),
        ([50], None),
        ([-1], None),
        ("x" * 100, "context_length_exceeded"),
        ([1] * 100, "context_length_exceeded"),
    ],
)
async def test_an_invalid_prompt_is_refused(model: Any, prompt: Any, code: str | None) -> None:
    with pytest.raises(RequestError) as refusal:
        await prompts.of_completion(model, CompletionRequest(prompt=["fine", prompt] if prompt == "" else prompt))
    assert (refusal.value.param, refusal.value.code) == ("prompt", code)


async def test_the_forms_of_a_prompt_are_told_apart(model: Any) -> None:
    forms: list[tuple[Any, list[list[int]]]] = [
        ("ab", [[1, 1]]),
        (["ab", "c"], [[1, 1], [1]]),
        ([7, 8], [[7, 8]]),
        ([[7], [8, 9]], [[7], [8, 9]]),
    ]
    for prompt, ids in forms:
        assert await prompts.of_completion(model, CompletionRequest(prompt=prompt)) == ids


async def test_a_model_without_a_template_says_where_to_ask(model: Any) -> None:
    with pytest.raises(RequestError, match="/v1/completions"):
        await prompts.of_chat(model, Conversation([Message("user", "Hello")]))
