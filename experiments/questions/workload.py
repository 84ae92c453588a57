"""Chooses questions by a seed, from the held-out part of the demo corpus or from a file.

A file has JSON lines: {"prompt": "...", "answer": "...", "metric": "...", "kind": "..."}; only the prompt is required.
"""

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from calibration.humaneval import HumanEvalTask
from common.errors import ConfigError
from common.files import jsonl
from experiments.questions import extract, sandbox, text_metrics
from experiments.questions.text_metrics import METRICS
from models.corpus import questions as corpus


class Question(msgspec.Struct, frozen=True):
    """One prompt with its right answer, where that is known; `metric` scores other answers.

    With a `task` an answer is right if it passes the task's tests, whatever the metric.
    """

    prompt: str
    answer: str | None = None
    kind: str = ""
    metric: str = "exact_match"
    task: HumanEvalTask | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("the prompt is empty")
        if self.task is None and self.metric not in METRICS:
            raise ValueError(f"the metric must be one of {', '.join(METRICS)}, not {self.metric!r}")

    def score(self, given: str) -> float | None:
        """0 to 1, None without a right answer. It may take seconds: tests run in a process of their own."""
        if self.task is not None:
            return float(sandbox.run(extract.program(self.task, given)).passed)
        return None if self.answer is None else text_metrics.score(self.metric, given, self.answer)


def questions(count: int, seed: int) -> list[Question]:
    """`count` different questions of the corpus, the same for the same seed; a smaller count gives the first of them.

    They are drawn with a probability proportional to the length of their right answer, as if tokens were drawn: most
    answers have less than 15 tokens, which is too short to measure speed. Raises ConfigError where there are fewer.
    """
    return sample(held_out(), count, seed, lambda question: len(question.answer or ""))


def held_out() -> list[Question]:
    """Questions of the demo corpus with wordings and operands that neither demo model was trained on."""
    return [Question(prompt, answer, kind) for kind, prompt, answer in corpus.held_out_pairs()]


def from_file(file: Path) -> list[Question]:
    """The questions of a file; raises ConfigError, with the line number, for an invalid line."""
    return jsonl.read(file, Question)


def different(given: Iterable[Question]) -> list[Question]:
    """One question for each prompt: the last."""
    return list({question.prompt: question for question in given}.values())


def sample(
    given: Iterable[Question], count: int, seed: int, weight: Callable[[Question], float] = lambda question: 1.0
) -> list[Question]:
    """Draws without replacement, with probabilities proportional to weights (Efraimidis and Spirakis, 2006)."""
    choices = different(given)
    if len(choices) < count:
        raise ConfigError(f"there are only {len(choices)} different prompts, not {count}")
    rng = random.Random(seed)
    keys = {question.prompt: rng.random() ** (1 / weight(question)) for question in choices}
    return sorted(choices, key=lambda question: keys[question.prompt], reverse=True)[:count]
