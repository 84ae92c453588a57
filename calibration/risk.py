"""Statistics of failure counts: exact binomial tests, fixed-sequence testing, Wilson and bootstrap intervals."""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


def binomial_cdf(failures: int, trials: int, risk: float) -> float:
    """P(X <= failures) for X ~ Binomial(trials, risk), exactly; 0 < risk < 1."""
    log_p, log_q = math.log(risk), math.log1p(-risk)
    ways = math.lgamma(trials + 1)
    terms = (
        math.exp(ways - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * log_p + (trials - k) * log_q)
        for k in range(failures + 1)
    )
    return min(1.0, math.fsum(terms))


def p_value(failures: int, trials: int, bound: float) -> float:
    """The p-value of the hypothesis that the risk is above `bound`; super-uniform under it.

    Exact, as each trial fails or does not (Brown et al. 2001); Hoeffding-Bentkus is only an upper bound of it.
    """
    return binomial_cdf(failures, trials, bound)


def last_safe(failures: Sequence[int], trials: int, bound: float, confidence: float) -> int | None:
    """The last of several gates, ordered from the safest on, whose risk is at most `bound`; None if no gate passes.

    Learn-then-Test by fixed-sequence testing (Angelopoulos et al. 2021, arXiv 2110.01052): each gate is tested at level
    1 - confidence in turn, until one fails. With probability `confidence` or more over the trials, every gate up to
    the one returned keeps the bound. The order must come from other trials.
    """
    safe = None
    for gate, failed in enumerate(failures):
        if p_value(failed, trials, bound) > 1 - confidence:
            break
        safe = gate
    return safe


def trials_needed(bound: float, confidence: float) -> int:
    """The fewest trials n that can show that a risk is at most `bound`: (1 - bound)^n <= 1 - confidence."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-bound))


def wilson(failures: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of the share failures / trials (Wilson 1927); trials >= 1."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = failures / trials, z * z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], Any], trials: int, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of a statistic over `trials` items, resampled with replacement (Efron 1979).

    `statistic` gets the numbers of the drawn items, [trials].
    """
    draws = np.random.default_rng(seed).integers(0, trials, (RESAMPLES, trials))
    found = np.array([float(statistic(draw)) for draw in draws])
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
