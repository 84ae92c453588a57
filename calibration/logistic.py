"""Fits a logistic regression with a penalty, by Newton's method: the weights of a router."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.floating[Any]]

PENALTY = 1.0
"""Half of it times the squared weights is added to the loss; the features are scaled to a variance of 1 before."""
STEPS, CLOSE = 50, 1e-9
"""At most so many steps, until no weight moves by more."""
ROUNDING = 1e-9
"""A feature that varies by less, as a share of its largest value, is the same everywhere but for rounding."""


def fit(features: ArrayLike, labels: ArrayLike, penalty: float = PENALTY) -> tuple[float, Numbers]:
    """The bias, and the weights of the unscaled features, [F], for `features`, [N, F], and labels 0 or 1, [N].

    A feature that never varies gets a weight of 0. The penalty keeps weights finite where labels can be separated, or
    are all the same.
    """
    given, right = np.asarray(features, np.float64), np.asarray(labels, np.float64)
    middle, width = given.mean(0), given.std(0)
    varies = width > ROUNDING * np.abs(given).max(0)
    scaled = np.divide(given - middle, width, out=np.zeros_like(given), where=varies)
    inputs = np.column_stack([np.ones(len(scaled)), scaled])
    ridge = penalty * np.eye(inputs.shape[1])
    ridge[0, 0] = 1e-3 * penalty  # the bias is free, but stays finite
    weights = np.zeros(inputs.shape[1])
    for _ in range(STEPS):
        chances = 1 / (1 + np.exp(-inputs @ weights))
        slope = inputs.T @ (chances - right) + ridge @ weights
        curve = (inputs * (chances * (1 - chances))[:, None]).T @ inputs + ridge
        step = np.linalg.solve(curve, slope)
        weights = weights - step
        if np.abs(step).max() < CLOSE:
            break
    unscaled = np.divide(weights[1:], width, out=np.zeros_like(width), where=varies)
    return float(weights[0] - unscaled @ middle), unscaled
