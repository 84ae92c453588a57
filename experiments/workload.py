"""Which questions an experiment asks: held-out ones of the demo corpus, or a file's. Knows no server.

A file is JSON lines: {"prompt": "...", "kind": "...", "answer": "..."}, of which only the prompt is needed.
"""

import random
from collections.abc import Callable
from pathlib import Path

import msgspec

from common.errors import ConfigError
from models import corpus


class Question(msgspec.Struct, frozen=True):
    """One prompt; `answer` is the right one, where it is known."""

    prompt: str
    kind: str = ""
    answer: str = ""


def questions(count: int, seed: int, file: Path | None = None) -> list[Question]:
    """So many different questions, the same for the same seed; the first n are those of a smaller count.

    Of the corpus each is drawn with a chance in proportion to the length of its right answer: most of its answers have
    less than 15 tokens, which is too short to have a speed. So it is as if a token of all answers had been drawn.
    """
    if file is not None:
        return sample(from_file(file), count, seed, lambda question: 1.0)
    held_out = [Question(prompt, kind, answer) for kind, prompt, answer in corpus.held_out_pairs()]
    return sample(held_out, count, seed, lambda question: len(question.answer))


def from_file(file: Path) -> list[Question]:
    """Raises ConfigError, with the number of the line, for what is not a question."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    return [_question(file, number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _question(file: Path, number: int, line: str) -> Question:
    try:
        return msgspec.json.decode(line, type=Question)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{file}, line {number}: {error}") from error


def sample(found: list[Question], count: int, seed: int, weight: Callable[[Question], float]) -> list[Question]:
    """Draws without putting back, each with a chance in proportion to its weight (Efraimidis and Spirakis, 2006)."""
    different = list({question.prompt: question for question in found}.values())
    if len(different) < count:
        raise ConfigError(f"there are only {len(different)} different prompts; {count} are asked for")
    rng = random.Random(seed)
    keys = {question.prompt: rng.random() ** (1 / weight(question)) for question in different}
    return sorted(different, key=lambda question: keys[question.prompt], reverse=True)[:count]
