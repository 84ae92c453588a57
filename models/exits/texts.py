"""Reads texts to train exits on and tokenizes them: questions with answers, plain text, or the demo corpus."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from calibration import data
from common.errors import ConfigError
from models import heldout
from models.corpus import questions as corpus

VALIDATION = 0.1
"""The share of a file's texts that is used for validation only."""
DEMO_TEXTS, DEMO_TASKS = 8_000, 0.4
"""The number of demo conversations to train on, and the share of tasks among them."""


class TokenizedText(NamedTuple):
    """Token ids; the next token after each position from `first` on is learned or measured."""

    ids: list[int]
    first: int


Answer = Callable[[list[list[int]]], list[TokenizedText]]
"""Prompts, as token ids, to the same with answers."""


def demo(tokenizer: Any, count: int = DEMO_TEXTS) -> tuple[list[TokenizedText], list[TokenizedText]]:
    """New conversations of the demo corpus to train on, and every second held-out question to validate with."""
    pairs = itertools.islice(corpus.training_pairs(1000, DEMO_TASKS), count)
    held_out = [(prompt, answer) for _, prompt, answer in heldout.pairs()[::2]]
    return [_conversation(tokenizer, *pair) for pair in pairs], [_conversation(tokenizer, *pair) for pair in held_out]


def read(
    path: Path, tokenizer: Any, longest: int, answer: Answer | None = None
) -> tuple[list[TokenizedText], list[TokenizedText]]:
    """The texts of a file: those to train on, and the last tenth to validate with.

    .jsonl: lines of {"prompt": ..., "answer": ...}, of which the answers are learned; `answer` gives those that are
    missing. .txt: passages separated by blank lines, of which everything is learned. Texts are cut after `longest`
    tokens. Raises ConfigError.
    """
    texts = every(path, tokenizer, longest, answer)
    training = len(texts) - max(1, round(len(texts) * VALIDATION))
    if training < 1:
        raise ConfigError(f"{path}: {_too_few(len(texts), longest)}")
    return texts[:training], texts[training:]


def every(path: Path, tokenizer: Any, longest: int, answer: Answer | None = None) -> list[TokenizedText]:
    """All texts of a file, as in `read`."""
    found = _questions(path, tokenizer, longest, answer) if path.suffix == ".jsonl" else _passages(path, tokenizer)
    return [TokenizedText(ids[:longest], first) for ids, first in found if first < min(len(ids), longest) - 1]


def question(tokenizer: Any, prompt: str) -> list[int]:
    """A question in the model's chat template, up to where the answer begins."""
    return _encode(tokenizer, _asked(tokenizer, prompt))


def _questions(path: Path, tokenizer: Any, longest: int, answer: Answer | None) -> list[TokenizedText]:
    if answer is None:
        return [_conversation(tokenizer, *pair) for pair in data.read_answered(path)]
    asked = [(pair, question(tokenizer, pair.prompt)) for pair in data.read(path)]
    asked = [(pair, ids) for pair, ids in asked if len(ids) < longest]
    if len(asked) < 2:
        raise ConfigError(f"{path}: {_too_few(len(asked), longest)}")
    answered = iter(answer([ids for pair, ids in asked if pair.answer is None]))
    return [
        next(answered) if pair.answer is None else _conversation(tokenizer, pair.prompt, pair.answer)
        for pair, _ in asked
    ]


def _too_few(count: int, longest: int) -> str:
    found = f"{count} usable texts (of 2 tokens or more, questions shorter than {longest})"
    return f"{found}; 2 or more are needed, one of them for validation"


def _passages(path: Path, tokenizer: Any) -> list[TokenizedText]:
    try:
        passages = path.read_text(encoding="utf-8").split("\n\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return [TokenizedText(tokenizer.encode(passage), 0) for passage in passages if passage.strip()]


def _conversation(tokenizer: Any, prompt: str, answer: str) -> TokenizedText:
    """A question and its answer in the model's chat template; only the answer is learned."""
    before = _asked(tokenizer, prompt)
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    after = whole.removeprefix(before) if whole.startswith(before) else answer
    before_ids, after_ids = (_encode(tokenizer, part) for part in (before, after))
    return TokenizedText(before_ids + after_ids, len(before_ids) - 1)


def _asked(tokenizer: Any, prompt: str) -> str:
    if tokenizer.chat_template is None:
        raise ConfigError("the model has no chat template to ask questions with; give a .txt file")
    turns = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
