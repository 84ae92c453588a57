"""The questions that a gate is calibrated with: JSON lines, what an answer is worth, two parts. Knows no model."""

import random
from pathlib import Path
from typing import Literal

from msgspec import Struct

from common import jsonl


class CalibrationQuestion(Struct, frozen=True):
    """One line: a prompt, and its right answer where there is one.

    `metric`: the answer is right if it is the whole right string (`exact`), or has it somewhere in it (`contains`).
    Without `answer` the cloud's own counts as right.
    """

    prompt: str
    answer: str | None = None
    metric: Literal["exact", "contains"] = "exact"

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("the prompt is empty")

    def worth(self, text: str, cloud_text: str) -> float:
        """1 for a right answer, 0 for a wrong one; space around either does not count."""
        right = (cloud_text if self.answer is None else self.answer).strip()
        given = text.strip()
        return float(right in given if self.metric == "contains" else right == given)


def read(path: Path) -> list[CalibrationQuestion]:
    """All questions of a JSONL file; blank lines do not count. Raises ConfigError that names the wrong line."""
    return jsonl.read(path, CalibrationQuestion)


def split(count: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """The numbers below `count`, shuffled, in two parts: to fit on, and (the share `held_out`) to measure on."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    cut = count - round(count * held_out)
    return order[:cut], order[cut:]
