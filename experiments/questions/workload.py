"""Which questions an experiment asks: held-out ones of the demo corpus, or a file's, drawn by a seed. Knows no server.

A file is JSON lines: {"prompt": "...", "answer": "...", "metric": "...", "kind": "..."}; only the prompt is needed.
"""

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from common import jsonl
from common.errors import ConfigError
from experiments.questions.text_metrics import METRICS
from models.corpus import questions as corpus


class Question(msgspec.Struct, frozen=True):
    """One prompt; `answer` is the right one, where it is known, and `metric` says what another one is worth."""

    prompt: str
    answer: str | None = None
    kind: str = ""
    metric: str = "exact_match"

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("the prompt is empty")
        if self.metric not in METRICS:
            raise ValueError(f"the metric must be one of {', '.join(METRICS)}, not {self.metric!r}")


def questions(count: int, seed: int, file: Path | None = None) -> list[Question]:
    """So many different questions, the same for the same seed; the first n are those of a smaller count.

    Of the corpus each is drawn with a chance in proportion to the length of its right answer: most of its answers have
    less than 15 tokens, which is too short to have a speed. So it is as if a token of all answers had been drawn.
    """
    if file is not None:
        return sample(from_file(file), count, seed)
    return sample(held_out(), count, seed, lambda question: len(question.answer or ""))


def held_out() -> list[Question]:
    """Questions of the demo corpus, in wordings and on operands that neither demo model was trained on."""
    return [Question(prompt, answer, kind) for kind, prompt, answer in corpus.held_out_pairs()]


def from_file(file: Path) -> list[Question]:
    """Raises ConfigError, with the number of the line, for what is not a question."""
    return jsonl.read(file, Question)


def different(found: Iterable[Question]) -> list[Question]:
    """One of each prompt: the last."""
    return list({question.prompt: question for question in found}.values())


def sample(
    found: Iterable[Question], count: int, seed: int, weight: Callable[[Question], float] = lambda question: 1.0
) -> list[Question]:
    """Draws without putting back, each with a chance in proportion to its weight (Efraimidis and Spirakis, 2006)."""
    each = different(found)
    if len(each) < count:
        raise ConfigError(f"there are only {len(each)} different prompts; {count} are asked for")
    rng = random.Random(seed)
    keys = {question.prompt: rng.random() ** (1 / weight(question)) for question in each}
    return sorted(each, key=lambda question: keys[question.prompt], reverse=True)[:count]
