"""Texts to train exits on, as token ids: questions with answers, plain text, or the demo's corpus. Knows no model."""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

from calibration import data as calibration_data
from common.errors import ConfigError
from models import heldout
from models.corpus import questions as corpus

VALIDATION = 0.1
"""Share of the texts that nothing is trained on."""
DEMO_TEXTS, DEMO_TASKS = 8_000, 0.4
"""How many of the demo's conversations, and which share of them are tasks."""


class TokenizedText(NamedTuple):
    """Token ids; what is said after each of them from the position `first` on is learned, or measured."""

    ids: list[int]
    first: int


def demo(tokenizer: Any, count: int = DEMO_TEXTS) -> tuple[list[TokenizedText], list[TokenizedText]]:
    """Conversations as demo-cloud was trained on, others than those; to validate, half the held-out questions."""
    pairs = itertools.islice(corpus.training_pairs(1000, DEMO_TASKS), count)
    held_out = [(prompt, answer) for _, prompt, answer in heldout.pairs()[::2]]
    return [_asked(tokenizer, *pair) for pair in pairs], [_asked(tokenizer, *pair) for pair in held_out]


def read(path: Path, tokenizer: Any, longest: int) -> tuple[list[TokenizedText], list[TokenizedText]]:
    """The texts of a file, to train on and to validate with: the last tenth.

    .jsonl: lines of {"prompt": ..., "answer": ...}, of which the answers are learned; .txt: passages between blank
    lines. Texts are cut after `longest` tokens. Raises ConfigError in one line.
    """
    found = _questions(path, tokenizer) if path.suffix == ".jsonl" else _passages(path, tokenizer)
    texts = [TokenizedText(ids[:longest], first) for ids, first in found if first < min(len(ids), longest) - 1]
    training = len(texts) - max(1, round(len(texts) * VALIDATION))
    if training < 1:
        raise ConfigError(f"{path}: {len(texts)} texts; 2 or more are needed, some of them to validate with")
    return texts[:training], texts[training:]


def _questions(path: Path, tokenizer: Any) -> list[TokenizedText]:
    texts = []
    for question in calibration_data.read(path):
        if question.answer is None:
            raise ConfigError(f"{path}: every line needs an answer")
        texts.append(_asked(tokenizer, question.prompt, question.answer))
    return texts


def _passages(path: Path, tokenizer: Any) -> list[TokenizedText]:
    try:
        passages = path.read_text(encoding="utf-8").split("\n\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return [TokenizedText(tokenizer.encode(passage), 0) for passage in passages if passage.strip()]


def _asked(tokenizer: Any, prompt: str, answer: str) -> TokenizedText:
    """A question and its answer as the model's chat template writes them."""
    if tokenizer.chat_template is None:
        raise ConfigError("the model has no chat template to ask questions with; give a .txt file")
    asked = [{"role": "user", "content": prompt}]
    before = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": answer}], tokenize=False)
    after = whole.removeprefix(before) if whole.startswith(before) else answer
    before_ids, after_ids = (tokenizer.encode(part, add_special_tokens=False) for part in (before, after))
    return TokenizedText(before_ids + after_ids, len(before_ids) - 1)
