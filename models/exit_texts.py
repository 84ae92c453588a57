"""Texts to train exits on, as token ids: questions with answers, plain text, or the demo's corpus. Knows no model."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from common import calibration_data
from common.errors import ConfigError
from models import corpus, heldout
from models.tokenizer import PAIR

VALIDATION = 0.1
"""Share of the texts that nothing is trained on."""
DEMO_TEXTS, DEMO_TASKS = 12_000, 0.4
"""How many of the demo's conversations, and which share of them are tasks."""


class Text(NamedTuple):
    """Token ids; what is said after each of them from the position `first` on is learned, or measured."""

    ids: list[int]
    first: int


def demo(tokenizer: Any, count: int = DEMO_TEXTS) -> tuple[list[Text], list[Text]]:
    """Conversations as demo-cloud was trained on, others than those; to validate, half the held-out questions."""
    pairs = itertools.islice(corpus.training_pairs(1000, DEMO_TASKS), count)
    held_out = [(prompt, answer) for _, prompt, answer in heldout.pairs()[::2]]
    return _conversations(tokenizer, pairs), _conversations(tokenizer, held_out)


def read(path: Path, tokenizer: Any, longest: int) -> tuple[list[Text], list[Text]]:
    """The texts of a file, to train on and to validate with: the last tenth.

    .jsonl: lines of {"prompt": ..., "answer": ...}, of which the answers are learned; .txt: passages between blank
    lines. Texts are cut after `longest` tokens. Raises ConfigError in one line.
    """
    found = _questions(path, tokenizer) if path.suffix == ".jsonl" else _passages(path, tokenizer)
    texts = [Text(ids[:longest], first) for ids, first in found if first < min(len(ids), longest) - 1]
    training = len(texts) - max(1, round(len(texts) * VALIDATION))
    if training < 1:
        raise ConfigError(f"{path}: {len(texts)} texts; 2 or more are needed, some of them to validate with")
    return texts[:training], texts[training:]


def _questions(path: Path, tokenizer: Any) -> list[Text]:
    questions = calibration_data.read(path)
    if any(question.answer is None for question in questions):
        raise ConfigError(f"{path}: every line needs an answer")
    if tokenizer.chat_template is None:
        raise ConfigError(f"{path}: the model has no chat template to ask with; give a .txt file")
    texts = []
    for question in questions:
        asked = {"role": "user", "content": question.prompt}
        whole = [asked, {"role": "assistant", "content": question.answer}]
        prompt, both = (
            tokenizer.apply_chat_template(messages, add_generation_prompt=end, tokenize=False)
            for messages, end in (([asked], True), (whole, False))
        )
        answer = both.removeprefix(prompt) if both.startswith(prompt) else question.answer
        texts.append(_text(tokenizer, prompt, answer))
    return texts


def _passages(path: Path, tokenizer: Any) -> list[Text]:
    try:
        passages = path.read_text(encoding="utf-8").split("\n\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return [Text(tokenizer.encode(passage), 0) for passage in passages if passage.strip()]


def _conversations(tokenizer: Any, pairs: Iterable[tuple[str, str]]) -> list[Text]:
    return [_text(tokenizer, PAIR.question.format(prompt), PAIR.answer.format(answer)) for prompt, answer in pairs]


def _text(tokenizer: Any, prompt: str, answer: str) -> Text:
    asked, answered = (tokenizer.encode(part, add_special_tokens=False) for part in (prompt, answer))
    return Text(asked + answered, len(asked) - 1)
