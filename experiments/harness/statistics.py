"""Quantiles and ratios with their uncertainty, by drawing questions again. Pure: knows nothing of what was measured.

All intervals are percentile bootstraps (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 1000


@dataclass(frozen=True)
class Pair:
    """The same question asked two ways: the amount (tokens, say) and the seconds of each."""

    amount: float
    seconds: float
    base_amount: float
    base_seconds: float


@dataclass(frozen=True)
class SpeedUp:
    """A speed over another, and the interval that holds 95 % of what other questions of this kind would give."""

    value: float
    low: float
    high: float


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which a `share` (0 to 1) of them lies; None of no values."""
    return float(np.quantile(values, share)) if len(values) else None


def typical_ratio(pairs: Sequence[Pair]) -> float:
    """The median over pairs of their own ratios: what a stall of the machine in one of them does not move."""
    assert pairs
    return float(np.median([_ratio(np.array([p.amount, p.seconds, p.base_amount, p.base_seconds])) for p in pairs]))


def speed_ratio(pairs: Sequence[Pair], seed: int = 0) -> SpeedUp:
    """All amounts over all seconds, against the same of the base; the interval is a percentile bootstrap over pairs.

    A pair is one question both ways, asked within minutes of each other, so what slows the machine slows both.
    """
    assert pairs
    rows = np.array([(p.amount, p.seconds, p.base_amount, p.base_seconds) for p in pairs])
    low, high = interval(_ratio(draws(len(rows), seed) @ rows))
    return SpeedUp(float(_ratio(rows.sum(axis=0))), low, high)


def draws(count: int, seed: int = 0) -> Floats:
    """How often each of `count` questions is drawn when so many are drawn with putting back, [RESAMPLES, count]."""
    return np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=RESAMPLES).astype(np.float64)


def as_asked(count: int) -> Floats:
    """Each question once, [1, count]: in place of `draws` it gives the value itself."""
    return np.ones((1, count))


def interval(drawn: Floats, share: float = 0.95) -> tuple[float, float]:
    """What holds a `share` of the values, [RESAMPLES], with as much left out below as above; NaN are no values."""
    low, high = np.nanquantile(drawn, ((1 - share) / 2, (1 + share) / 2))
    return float(low), float(high)


def ratios(drawn: Floats, amount: Floats, per: Floats) -> Floats:
    """All amounts over all of what they are per, each [questions], for each draw; NaN where that is nothing."""
    above, below = drawn @ amount, drawn @ per
    found: Floats = np.divide(above, below, out=np.full(len(drawn), np.nan), where=below > 0)
    return found


def quantiles(drawn: Floats, values: Floats, share: float) -> Floats:
    """For each draw the least value that is not below a `share` of all; `values` are [questions, repeats], NaN none."""
    question, _ = np.nonzero(~np.isnan(values))
    flat = values[~np.isnan(values)]
    order = np.argsort(flat, kind="stable")
    below = np.cumsum(drawn[:, question[order]], axis=1)
    wanted = share * below[:, -1:]
    found = flat[order][np.minimum((below < wanted - 1e-9).sum(axis=1), len(flat) - 1)]
    return np.where(below[:, -1] > 0, found, np.nan)


def _ratio(sums: Floats) -> Floats:
    """`sums` has the four fields of Pair as its last axis."""
    return (sums[..., 0] / sums[..., 1]) / (sums[..., 2] / sums[..., 3])
