"""Quantiles, and ratios of two speeds with their uncertainty. Pure: knows nothing of what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Pair:
    """The same question asked two ways: the amount (tokens, say) and the seconds of each."""

    amount: float
    seconds: float
    base_amount: float
    base_seconds: float


@dataclass(frozen=True)
class Ratio:
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


def speed_ratio(pairs: Sequence[Pair], seed: int = 0) -> Ratio:
    """All amounts over all seconds, against the same of the base; the interval is a percentile bootstrap over pairs.

    A pair is one question both ways, asked within minutes of each other, so what slows the machine slows both. (Efron
    and Tibshirani, An Introduction to the Bootstrap, chapter 13.)
    """
    assert pairs
    rows = np.array([(p.amount, p.seconds, p.base_amount, p.base_seconds) for p in pairs])
    drawn = np.random.default_rng(seed).multinomial(len(rows), [1 / len(rows)] * len(rows), size=RESAMPLES)
    low, high = np.quantile(_ratio(drawn @ rows), (0.025, 0.975))
    return Ratio(float(_ratio(rows.sum(axis=0))), float(low), float(high))


def _ratio(
    sums: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]",
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """`sums` has the four fields of Pair as its last axis."""
    return (sums[..., 0] / sums[..., 1]) / (sums[..., 2] / sums[..., 3])
