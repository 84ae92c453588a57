"""How often draft tokens would be accepted where answers are sampled, by the way in which the draft is drawn.

Given the distributions p of the cloud and q of the edge at one position, of the same temperature:

    greedy    the edge's likeliest token is accepted with its probability under p
    coupled   both draw with the same Gumbel noise (arXiv 2408.07978): equal with probability
              sum_i 1 / sum_j max(p_j / p_i, q_j / q_i)
    drawn     drafted from q, verified by rejection sampling: sum_i min(p_i, q_i), the most that any draft from q has
    sparse k  the same with the k likeliest tokens of q, which fit into a request
"""

import numpy as np
from numpy.typing import NDArray

Distribution = NDArray[np.float64]
"""Probabilities, [V], that add up to 1."""


def tempered(logprobs: Distribution, temperature: float) -> Distribution:
    """The distribution of `temperature` (above 0), from log probabilities or logits, [V]."""
    weights = np.exp((logprobs - logprobs.max()) / temperature)
    return np.asarray(weights / weights.sum())


def greedy(p: Distribution, q: Distribution) -> float:
    return float(p[q.argmax()])


def drawn(p: Distribution, q: Distribution) -> float:
    return float(np.minimum(p, q).sum())


def sparse(p: Distribution, q: Distribution, k: int) -> float:
    """`k`: how many of the edge's likeliest tokens are sent; the draft is drawn from them alone."""
    kept = np.where(q >= np.partition(q, -k)[-k], q, 0.0)
    return drawn(p, kept / kept.sum())


def coupled(p: Distribution, q: Distribution) -> float:
    """Over the tokens that either model gives a probability of 1e-6 or more: the others add less than they number."""
    likely = np.flatnonzero((p > 1e-6) & (q > 1e-6))
    either = np.flatnonzero((p > 1e-6) | (q > 1e-6))
    ratios = np.maximum(p[either] / p[likely, None], q[either] / q[likely, None])
    return float((1 / ratios.sum(axis=1)).sum())
