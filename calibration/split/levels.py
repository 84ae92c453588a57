"""From a level to a threshold for each exit: that from which on its token is right with at least this probability."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from calibration import logistic
from calibration.simulation import Numbers
from calibration.split.simulation import ExitTrace

NEVER = 1.01
"""A level, and a threshold, that no exit reaches."""
LEVELS = [NEVER, *sorted({*np.round(1 - np.geomspace(1e-4, 1, 61), 4).tolist()}, reverse=True)]
"""Those that are tried, from the safest on."""
LEAST = 1e-7
"""The least distance of a confidence from 0 and 1, for its log-odds."""
MOST = math.log((1 - LEAST) / LEAST)
"""The log-odds of a confidence of 1."""
AT_ITS_WORD = 1 / (1 + np.exp(-np.linspace(-4.0, 9.0, 40)))
"""Confidences of tokens that count as right as often as they say, so that a few answers without a mistake do not show
that an exit makes none."""


class TrustedExit(NamedTuple):
    """Log-odds that an exit's token is the whole model's: `bias` + `weight` times those of its confidence.

    So the confidences of exits, which are trained apart, come to mean the same (Platt 1999).
    """

    bias: float
    weight: float

    @classmethod
    def fit(cls, confidence: Numbers, agrees: Numbers) -> "TrustedExit":
        """Both [T], of one exit; weight 0 where more confident tokens are not right more often."""
        shown, right = np.append(confidence, AT_ITS_WORD), np.append(agrees, AT_ITS_WORD)
        bias, (weight,) = logistic.fit(_log_odds(shown)[:, None], right)
        return cls(bias, float(weight)) if weight > 0 else cls(float(_log_odds(agrees.mean())), 0.0)

    def threshold(self, level: float) -> float:
        """The least confidence at which the token is right with the probability `level`, 0 to 1; NEVER without one."""
        if level <= 0:
            return 0.0
        missing = float(_log_odds(np.array(level))) - self.bias
        if level > 1 or missing > self.weight * MOST:
            return NEVER
        return (1 + math.tanh(missing / self.weight / 2)) / 2 if self.weight else 0.0


def fit(traces: Sequence[ExitTrace]) -> list[TrustedExit]:
    """Each exit of the model whose answers these are."""
    confidence = np.concatenate([trace.confidence for trace in traces], axis=1)
    agrees = np.concatenate([trace.agrees for trace in traces], axis=1)
    return [TrustedExit.fit(*each) for each in zip(confidence, agrees.astype(np.float64), strict=True)]


def thresholds(exits: Sequence[TrustedExit], level: float) -> tuple[float, ...]:
    """That of each exit, rounded up to what a config file shows."""
    return tuple(min(NEVER, float(np.ceil(1e6 * exit.threshold(level)) / 1e6)) for exit in exits)


def _log_odds(chance: Numbers) -> Numbers:
    kept = np.clip(chance, LEAST, 1 - LEAST)
    return np.asarray(np.log(kept / (1 - kept)))
