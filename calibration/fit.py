"""Fits the gate to traces: what a confidence is worth, which thresholds to try, which of them to take. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration import risk
from common.errors import ConfigError
from common.decoding.policy import Gate, Plan
from calibration.simulation import Answers, Trace

Numbers = NDArray[np.floating[Any]]

STEPS = 24
"""Token thresholds that are tried, evenly spread over the tokens; those where the isotonic map rises come on top."""
PRODUCTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95)
"""Product thresholds that are tried; 0 never escalates."""
TOLERANCE = 0.03
"""By how much a cloud rate may miss the one that was asked for."""


@dataclass(frozen=True)
class Isotonic:
    """A step function that never falls: `values[i]` from `starts[i]` up to the next; `values[0]` also below."""

    starts: Numbers
    values: Numbers

    @classmethod
    def fit(cls, x: ArrayLike, y: ArrayLike) -> "Isotonic":
        """The least-squares fit to points (x, y), both [T], by pooling adjacent violators (Ayer et al. 1955).

        Points with one x are pooled first, so that the fit is a function.
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
    """Thresholds worth trying, from 0 (all is sure) to 1: where the map rises, and evenly between, in 4 digits.

    Of the map's steps those count that part at least 1 / STEPS of all tokens from the step before.
    """
    ordered = np.sort(confidences)
    shares = np.searchsorted(ordered, mapping.starts) / len(ordered)
    _, first = np.unique((shares * STEPS).astype(int), return_index=True)
    even = np.quantile(ordered, np.linspace(0, 1, STEPS + 1))
    tried = np.concatenate([[0.0, 1.0], mapping.starts[first], even])
    return sorted({round(float(t), 4) for t in tried})


def plans(base: Plan, thresholds: Sequence[float]) -> list[Plan]:
    """Every draft length up to `base`'s in powers of two, with every pair of thresholds that differs in effect.

    A product of n confidences is at most each of them and, where all reach t, at least t^n: so a product threshold
    matters only below the token's, and above that one to the n-th power.
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
    """Those gates to which no other is better in both: from the least harm (and most cost) to the least cost."""
    best: list[int] = []
    for gate in np.lexsort((harm, cost)):  # ascending cost, then harm
        if not best or harm[gate] < harm[best[-1]]:
            best.append(int(gate))
    return best[::-1]


def for_quality(found: Answers, target: float) -> int:
    """The gate with the least cloud work among those that reach the quality."""
    good = np.flatnonzero(found.quality >= target)
    if not len(good):
        raise ConfigError(f"--target-quality {target:g}: no thresholds reach it; the best is {found.quality.max():.3f}")
    return int(good[found.cloud_work[good].argmin()])


def for_cloud_rate(found: Answers, target: float) -> int:
    """The gate with the best quality among those whose cloud rate is within a third of the tolerance, or nearest."""
    distance = np.abs(found.cloud_rate - target)
    if distance.min() > TOLERANCE:
        nearest = found.cloud_rate[distance.argmin()]
        raise ConfigError(f"--target-cloud-rate {target:g}: cannot be reached; the nearest is {nearest:.3f}")
    near = np.flatnonzero(distance <= max(TOLERANCE / 3, distance.min()))
    return int(near[found.quality[near].argmax()])


def for_risk(ordering: Answers, testing: Answers, bound: float, confidence: float) -> int:
    """The gate with the least cloud work whose risk is at most `bound` with probability `confidence`.

    The gates on the frontier of work and risk over one half of the prompts, from the safest on, are tested on the other
    half (Pareto testing, Laufer-Goldenberg et al. 2022, arXiv 2210.07913).
    """
    order = frontier(ordering.cloud_work, ordering.risk)
    failures = testing.worse.sum(-1)[order]
    safe = risk.last_safe([int(f) for f in failures], testing.worse.shape[-1], bound, confidence)
    if safe is None:
        raise ConfigError(
            f"--max-risk {bound:g}: not even the safest thresholds can be shown to keep it "
            f"({failures[0]} of {testing.worse.shape[-1]} answers are worse)"
        )
    tested = order[: safe + 1]
    return min(tested, key=lambda gate: float(testing.cloud_work[gate]))
