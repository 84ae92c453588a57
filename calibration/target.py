"""The target of a calibration: a quality, cloud rate or risk; the questions it needs, and the plan that meets it."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration import fit, risk
from calibration.simulation import Answers
from common.errors import ConfigError

HELD_OUT = 0.5
"""The share of the questions that the thresholds are measured on and not fitted to."""
MIN_QUESTIONS = 30
"""In each part, whatever the target."""


@dataclass(frozen=True)
class CalibrationTarget:
    """The command line's flag, its value (0 to 1), and the confidence level (0 to 1), which only `--max-risk` uses."""

    flag: str
    target: float
    confidence: float

    @classmethod
    def of(cls, args: argparse.Namespace) -> "CalibrationTarget":
        """Raises ConfigError unless exactly one target is given and all values are within their range."""
        flags = {
            "--target-quality": args.target_quality,
            "--target-cloud-rate": args.target_cloud_rate,
            "--max-risk": args.max_risk,
        }
        given = [(flag, value) for flag, value in flags.items() if value is not None]
        if len(given) != 1:
            raise ConfigError(f"--mode calibrate needs one of {', '.join(flags)}")
        flag, target = given[0]
        for name, value in ((flag, target), ("--confidence", args.confidence)):
            if not 0 < value < 1:
                raise ConfigError(f"{name} must be above 0 and below 1, not {value:g}")
        return cls(flag, target, args.confidence)

    def __str__(self) -> str:
        """As on the command line."""
        level = f" --confidence {self.confidence:g}" if self.proves_risk else ""
        return f"{self.flag} {self.target:g}{level}"

    @property
    def proves_risk(self) -> bool:
        return self.flag == "--max-risk"

    @property
    def questions_needed(self) -> int:
        """The fewest questions that can show the target at all, including the held-out part.

        For a quality: enough to see one failure at that rate with 95 % probability (rule of three). For a risk: enough
        to pass the test if no answer fails, and as many again to put the gates in order, or to fit a level.
        """
        to_fit = MIN_QUESTIONS
        if self.flag == "--target-quality":
            to_fit = max(to_fit, math.ceil(round(3 / (1 - self.target), 6)))
        elif self.proves_risk:
            to_fit = max(to_fit, 2 * risk.trials_needed(self.target, self.confidence))
        return math.ceil(max(to_fit / (1 - HELD_OUT), MIN_QUESTIONS / HELD_OUT))

    def choose(self, simulated: Answers, order: Sequence[int] | None = None) -> int:
        """The row of `simulated`, which has one row per plan, that meets the target best.

        `order`: the rows from the safest on, where that is known without the answers; None: half of these tell it.
        Raises ConfigError if none meets it.
        """
        if self.flag == "--target-quality":
            return fit.for_quality(simulated, self.target)
        if self.flag == "--target-cloud-rate":
            return fit.for_cloud_rate(simulated, self.target)
        if order is not None:
            return fit.last_in_order(order, simulated, self.target, self.confidence)
        prompts = np.arange(simulated.worth.shape[-1])
        ordering, testing = simulated.of(prompts[::2]), simulated.of(prompts[1::2])
        return fit.for_risk(ordering, testing, self.target, self.confidence)
