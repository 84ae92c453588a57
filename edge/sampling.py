"""Draws tokens from logits, reproducibly from a seed and a position. Pure: knows no model and no state."""

import math
import secrets

import numpy as np
from numpy.typing import NDArray

from common.types import Sampling

Logits = NDArray[np.float32]
"""One row, [V]; where llama.cpp put it, valid until its next step."""
GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy, as they are for vLLM."""


def draw(logits: Logits, sampling: Sampling, uniform: float) -> int:
    """The token that `uniform`, in [0, 1), picks from the distribution that `sampling` makes of `logits`, [V].

    Temperature first, then top-k, then top-p, as vLLM has it.
    """
    if sampling.temperature < GREEDY_BELOW:
        return int(logits.argmax())
    scaled = (logits - logits.max()) / sampling.temperature
    if 0 < sampling.top_k < len(scaled):
        scaled[scaled < np.partition(scaled, -sampling.top_k)[-sampling.top_k]] = -np.inf
    weights = np.exp(scaled)
    if sampling.top_p < 1:
        largest_first = np.sort(weights)[::-1]
        mass = np.cumsum(largest_first, dtype=np.float64)
        weights[weights < largest_first[np.searchsorted(mass[:-1], sampling.top_p * mass[-1])]] = 0
    mass = np.cumsum(weights, dtype=np.float64)
    return int(np.searchsorted(mass[:-1], uniform * mass[-1], side="right"))


def uniforms(sampling: Sampling, position: int, count: int) -> list[float]:
    """One number in [0, 1) for each of `count` positions from `position` on, made of the seed and the position."""
    if sampling.temperature < GREEDY_BELOW:
        return [0.0] * count
    seed = secrets.randbits(64) if sampling.seed is None else sampling.seed % 2**64
    # Philox makes four numbers for each value of its counter: one row for each position.
    rows: NDArray[np.float64] = np.random.Generator(np.random.Philox(key=seed, counter=position)).random((count, 4))
    return [float(first) for first in rows[:, 0]]


def probability(logits: Logits, token: int) -> float:
    """The token's probability under the full softmax; above 0."""
    peak = logits.max()
    return math.exp(logits[token] - peak) / float(np.exp(logits - peak).sum())
