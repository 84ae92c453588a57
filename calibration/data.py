"""Reads the questions that a gate or a temperature is calibrated with (JSON lines), and scores answers to them."""

import random
from pathlib import Path
from typing import Literal

from msgspec import Struct

from calibration import humaneval
from common.errors import ConfigError
from common.files import jsonl


class CalibrationQuestion(Struct, frozen=True):
    """One line: a prompt, and its right answer if there is one; without, the cloud's own answer counts as right.

    `metric`: the answer is right if it equals the right string (`exact`) or contains it (`contains`).
    """

    prompt: str
    answer: str | None = None
    metric: Literal["exact", "contains"] = "exact"

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("the prompt is empty")

    def worth(self, text: str, cloud_text: str) -> float:
        """1 for a right answer, 0 for a wrong one; leading and trailing space is ignored."""
        right = (cloud_text if self.answer is None else self.answer).strip()
        given = text.strip()
        return float(right in given if self.metric == "contains" else right == given)


class CalibrationLine(CalibrationQuestion, frozen=True):
    """A line of a file: a question, or a task of HumanEval as it is published, whose prompt begins a function."""

    entry_point: str = ""

    @property
    def question(self) -> CalibrationQuestion:
        prompt = humaneval.request(self.prompt) if self.entry_point else self.prompt
        return CalibrationQuestion(prompt, self.answer, self.metric)


def read(path: Path) -> list[CalibrationQuestion]:
    """All questions of a JSONL file, which may end in .gz; blank lines are skipped.

    Raises ConfigError with the number of a wrong line.
    """
    return [line.question for line in jsonl.read(path, CalibrationLine)]


def read_answered(path: Path) -> list[tuple[str, str]]:
    """(prompt, right answer) of every question of a JSONL file. Raises ConfigError, also if an answer is missing."""
    pairs = []
    for number, question in enumerate(read(path), 1):
        if question.answer is None:
            raise ConfigError(f"{path}: every line needs an answer; question {number} has none")
        pairs.append((question.prompt, question.answer))
    return pairs


def split(count: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """The numbers below `count`, shuffled, in two parts: to fit on, and (the share `held_out`) to measure on."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    cut = count - round(count * held_out)
    return order[:cut], order[cut:]
