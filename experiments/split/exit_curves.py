"""How many tokens remain the whole model's over how many the cloud gives, if exits are taken from a confidence on.

A token is taken at the first exit whose confidence reaches the threshold, else the cloud gives it, which is right. All
counts are kept by question, so that a bootstrap draws questions, whose tokens depend on each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.simulation import Numbers
from experiments.harness.statistics import Floats

RATES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Cloud rates at which measures are compared."""
STEPS = 240
"""Thresholds of a curve; half of them where the cloud gives less than a tenth of the tokens."""


@dataclass(frozen=True)
class ExitCurve:
    """For each of Q questions and G thresholds, from the lowest on: tokens of the cloud, and tokens that differ."""

    cloud: Floats
    """[Q, G]"""
    wrong: Floats
    """[Q, G]"""
    tokens: Floats
    """[Q]"""

    def points(self, drawn: Floats) -> "CurvePoints":
        """`drawn`, [R, Q]: how often each question is drawn."""
        tokens = (drawn @ self.tokens)[:, None]
        return CurvePoints(drawn @ self.cloud / tokens, drawn @ self.wrong / tokens)


class CurvePoints(NamedTuple):
    """The cloud rate and the share of tokens that differ, [R, G], in R samples of questions; the rate rises along G."""

    rate: Floats
    wrong: Floats

    @property
    def area(self) -> Floats:
        """The share that differs, as a mean over all cloud rates from 0 to 1, [R]."""
        return np.asarray(np.trapezoid(self.wrong, self.rate, axis=-1))

    def at(self, rates: Sequence[float]) -> Floats:
        """The share that differs at each of these cloud rates, [R, rates]."""
        return np.array([np.interp(rates, rate, wrong) for rate, wrong in zip(*self, strict=True)])


def curve(scores: Numbers, agrees: NDArray[np.bool_], question: NDArray[np.int64]) -> ExitCurve:
    """`scores` and `agrees`: of E exits at T tokens, [E, T]; `question`: whose tokens these are, [T]."""
    most = scores.max(axis=0)
    shares = np.concatenate([np.linspace(0, 0.1, STEPS // 2, endpoint=False), np.linspace(0.1, 1, STEPS // 2)])
    thresholds = np.unique(np.quantile(most, shares, method="higher"))
    rows = [_counts(scores, agrees, question, each) for each in (*thresholds, np.inf)]
    cloud, wrong = (np.column_stack(each) for each in zip(*rows, strict=True))
    return ExitCurve(cloud, wrong, np.bincount(question).astype(np.float64))


def _counts(
    scores: Numbers, agrees: NDArray[np.bool_], question: NDArray[np.int64], threshold: float
) -> tuple[Floats, Floats]:
    taken = scores >= threshold
    by_cloud = ~taken.any(axis=0)
    first = taken.argmax(axis=0)
    same = np.take_along_axis(agrees, first[None], axis=0)[0] | by_cloud
    return np.bincount(question, by_cloud).astype(np.float64), np.bincount(question, ~same).astype(np.float64)
