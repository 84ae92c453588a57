"""Fits the gate to traces: maps confidences to agreement, proposes thresholds, chooses among them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration import risk
from calibration.simulation import Answers, Trace
from common.decoding.policy import Gate, Plan
from common.errors import ConfigError

Numbers = NDArray[np.floating[Any]]

STEPS = 24
"""Token thresholds to try, at quantiles of all confidences, besides those where the isotonic map rises."""
PRODUCTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95)
"""Product thresholds to try; 0 never escalates."""
TOLERANCE = 0.03
"""The largest difference between a requested cloud rate and the one that is found."""


@dataclass(frozen=True)
class Isotonic:
    """A non-decreasing step function: `values[i]` from `starts[i]` up to the next start; `values[0]` also below."""

    starts: Numbers
    values: Numbers

    @classmethod
    def fit(cls, x: ArrayLike, y: ArrayLike) -> "Isotonic":
        """The least-squares fit to points (x, y), both [T], by pooling adjacent violators (Ayer et al. 1955).

        Points with the same x are pooled first, so that the fit is a function.
        """
        starts, group = np.unique(np.asarray(x, np.float64), return_inverse=True)
        weights = np.bincount(group).astype(float)
        means = np.bincount(group, np.asarray(y, np.float64)) / weights
        blocks: list[tuple[float, float, float]] = []  # mean, weight, start
        for mean, weight, start in zip(means, weights, starts, strict=True):
            while blocks and blocks[-1][0] >= mean:
                before, its_weight, start = blocks.pop()
                mean = (mean * weight + before * its_weight) / (weight + its_weight)
                weight += its_weight
            blocks.append((mean, weight, start))
        return cls(np.array([b[2] for b in blocks]), np.array([b[0] for b in blocks]))

    def __call__(self, x: ArrayLike) -> Numbers:
        place = np.searchsorted(self.starts, x, side="right") - 1
        return np.asarray(self.values[np.maximum(place, 0)])


def agreement(traces: Iterable[Trace]) -> tuple[Numbers, NDArray[np.bool_]]:
    """The confidences of all positions, [T], and whether the cloud agrees there, [T]."""
    held = list(traces)
    confidences = np.array([c for trace in held for c in trace.confidences], np.float64)
    return confidences, np.array([a for trace in held for a in trace.agrees], bool)


def token_thresholds(confidences: Numbers, mapping: Isotonic) -> list[float]:
    """Thresholds to try, increasing from 0 (every token is confident) to 1, rounded to 4 digits.

    They are STEPS quantiles of the confidences, and the map's steps that are at least about 1 / STEPS of all tokens
    apart.
    """
    ordered = np.sort(confidences)
    shares = np.searchsorted(ordered, mapping.starts) / len(ordered)
    _, first = np.unique((shares * STEPS).astype(int), return_index=True)
    even = np.quantile(ordered, np.linspace(0, 1, STEPS + 1))
    tried = np.concatenate([[0.0, 1.0], mapping.starts[first], even])
    return sorted({round(float(t), 4) for t in tried})


def plans(base: Plan, thresholds: Sequence[float]) -> list[Plan]:
    """`base` with every draft length (powers of two up to its own, and its own) and every useful pair of thresholds.

    The product of n confidences is at most each of them and, if all reach t, at least t^n. So a product threshold
    changes a decision only if it is below the token threshold t and above t^n.
    """
    top = base.max_draft_tokens
    lengths = sorted({top, *(2**i for i in range(top.bit_length()) if 2**i <= top)})
    gates = [Gate(t, p) for t in thresholds for p in PRODUCTS]
    return [
        replace(base, gate=gate, max_draft_tokens=length)
        for length in lengths
        for gate in gates
        if _differs(gate, length)
    ]


def _differs(gate: Gate, length: int) -> bool:
    if gate.threshold == 0 or gate.product_threshold == 0:
        return True
    return gate.threshold**length < gate.product_threshold < gate.threshold


def frontier(cost: Numbers, harm: Numbers) -> list[int]:
    """The Pareto-optimal gates (numbers into `cost` and `harm`), in order of rising harm and falling cost."""
    best: list[int] = []
    for gate in np.lexsort((harm, cost)):  # ascending cost, then harm
        if not best or harm[gate] < harm[best[-1]]:
            best.append(int(gate))
    return best[::-1]


def for_quality(found: Answers, target: float) -> int:
    """The gate with the least cloud work among those that reach the quality. Raises ConfigError if none does."""
    good = np.flatnonzero(found.quality >= target)
    if not len(good):
        raise ConfigError(f"--target-quality {target:g}: no thresholds reach it; the best is {found.quality.max():.3f}")
    return int(good[found.cloud_work[good].argmin()])


def for_cloud_rate(found: Answers, target: float) -> int:
    """The gate with the best quality among those whose cloud rate is close to `target`.

    Close is within a third of TOLERANCE or, if no gate is, as near as the nearest. Raises ConfigError if that is
    farther than TOLERANCE.
    """
    distance = np.abs(found.cloud_rate - target)
    if distance.min() > TOLERANCE:
        nearest = found.cloud_rate[distance.argmin()]
        raise ConfigError(f"--target-cloud-rate {target:g}: cannot be reached; the nearest is {nearest:.3f}")
    near = np.flatnonzero(distance <= max(TOLERANCE / 3, distance.min()))
    return int(near[found.quality[near].argmax()])


def for_risk(ordering: Answers, testing: Answers, bound: float, confidence: float) -> int:
    """The gate with the least cloud work whose risk is at most `bound` with probability `confidence`.

    The gates on the frontier of work and risk over `ordering`, from the safest on, are tested on `testing`, other
    prompts (Pareto testing, Laufer-Goldenberg et al. 2022, arXiv 2210.07913). Raises ConfigError if none passes.
    """
    return last_in_order(frontier(ordering.cloud_work, ordering.risk), testing, bound, confidence)


def last_in_order(order: Sequence[int], testing: Answers, bound: float, confidence: float) -> int:
    """As `for_risk`, of rows in a given order, the safest first, which does not come from `testing`."""
    failures = testing.worse.sum(-1)[order]
    safe = risk.last_safe([int(f) for f in failures], testing.worse.shape[-1], bound, confidence)
    if safe is None:
        raise ConfigError(
            f"--max-risk {bound:g}: not even the safest thresholds can be shown to keep it ({failures[0]} of "
            f"{testing.worse.shape[-1]} answers are worse than the cloud's); give more questions or a higher risk"
        )
    tested = order[: safe + 1]
    return min(tested, key=lambda gate: float(testing.cloud_work[gate]))
