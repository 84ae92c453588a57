"""Computes quantiles and ratios with their uncertainty, by resampling questions.

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
    """One question answered in two configurations: the amount (of tokens, for example) and the seconds of each."""

    amount: float
    seconds: float
    base_amount: float
    base_seconds: float


@dataclass(frozen=True)
class SpeedUp:
    """One speed over another, with its 95 % interval over questions."""

    value: float
    low: float
    high: float


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which a `share` (0 to 1) of the values lies; None without values."""
    return float(np.quantile(values, share)) if len(values) else None


def typical_ratio(pairs: Sequence[Pair]) -> float:
    """The median of the pairs' own speed ratios; unlike `speed_ratio`, one stalled answer does not move it."""
    assert pairs
    return float(np.median([_ratio(np.array([p.amount, p.seconds, p.base_amount, p.base_seconds])) for p in pairs]))


def speed_ratio(pairs: Sequence[Pair], seed: int = 0) -> SpeedUp:
    """The speed over all pairs divided by the base's speed, with a bootstrap interval over pairs.

    The two answers of a pair are made within minutes of each other, so a slow phase of the machine slows both.
    """
    assert pairs
    rows = np.array([(p.amount, p.seconds, p.base_amount, p.base_seconds) for p in pairs])
    low, high = interval(_ratio(draws(len(rows), seed) @ rows))
    return SpeedUp(float(_ratio(rows.sum(axis=0))), low, high)


def draws(count: int, seed: int = 0) -> Floats:
    """How often each of `count` questions is drawn in a sample of `count` with replacement, [RESAMPLES, count]."""
    return np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=RESAMPLES).astype(np.float64)


def each_once(count: int) -> Floats:
    """Each question drawn once, [1, count]: gives a measure's value where `draws` gives its distribution."""
    return np.ones((1, count))


def interval(drawn: Floats, share: float = 0.95) -> tuple[float, float]:
    """The central interval that holds a `share` of the values, [RESAMPLES]; NaN are left out."""
    low, high = np.nanquantile(drawn, ((1 - share) / 2, (1 + share) / 2))
    return float(low), float(high)


def ratios(drawn: Floats, amount: Floats, per: Floats) -> Floats:
    """For each draw, the sum of `amount` over the sum of `per`, each [questions]; NaN where `per` sums to 0."""
    above, below = drawn @ amount, drawn @ per
    quotient: Floats = np.divide(above, below, out=np.full(len(drawn), np.nan), where=below > 0)
    return quotient


def quantiles(drawn: Floats, values: Floats, share: float) -> Floats:
    """For each draw, the smallest value that at least a `share` of all reach at most.

    `values`: [questions, repeats], NaN where there is none. A draw without values gives NaN.
    """
    question, _ = np.nonzero(~np.isnan(values))
    flat = values[~np.isnan(values)]
    order = np.argsort(flat, kind="stable")
    below = np.cumsum(drawn[:, question[order]], axis=1)
    wanted = share * below[:, -1:]
    chosen = flat[order][np.minimum((below < wanted - 1e-9).sum(axis=1), len(flat) - 1)]
    return np.where(below[:, -1] > 0, chosen, np.nan)


def _ratio(sums: Floats) -> Floats:
    """The speed ratio; the last axis of `sums` has the four fields of Pair."""
    return (sums[..., 0] / sums[..., 1]) / (sums[..., 2] / sums[..., 3])
