"""How often draft tokens are accepted where answers are sampled, by the way in which the draft is drawn.

p is the cloud's distribution at one position and q the edge's, [V], both under the same temperature and filters:

    greedy    the edge's likeliest token, as the edge drafts, is accepted with its probability under p
    coupled   both draw with the same Gumbel noise (arXiv 2408.07978), and what both draw is accepted
    drawn     drafted from q, verified by rejection sampling: the most that any draft drawn from q has
    sparse k  the same with the k likeliest tokens of q, which fit into a request
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from common.types import Sampling

Distribution = NDArray[np.float64]
"""Probabilities, [V], that add up to 1."""
DraftKind = Callable[[Distribution, Distribution], NDArray[np.float64]]
"""From p and q to P(the cloud's token is i, and the draft's token is accepted) for each token i, [V]."""


def distribution(logits: NDArray[np.floating], sampling: Sampling) -> Distribution:
    """What a token is drawn from: temperature (above 0), top-k, then top-p, as in vLLM."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / sampling.temperature)
    if 0 < sampling.top_k < len(weights):
        weights[weights < np.partition(weights, -sampling.top_k)[-sampling.top_k]] = 0.0
    weights /= weights.sum()
    if sampling.top_p < 1:
        largest_first = np.sort(weights)[::-1]
        weights[weights < largest_first[np.searchsorted(largest_first.cumsum(), sampling.top_p)]] = 0.0
    return np.asarray(weights / weights.sum())


def greedy(p: Distribution, q: Distribution) -> NDArray[np.float64]:
    return np.asarray(np.where(np.arange(len(q)) == q.argmax(), p, 0.0))


def drawn(p: Distribution, q: Distribution) -> NDArray[np.float64]:
    return np.asarray(np.minimum(p, q))


def sparse(k: int) -> DraftKind:
    """`k`: how many of the edge's likeliest tokens are sent; the draft is drawn from them alone."""

    def of_likeliest(p: Distribution, q: Distribution) -> NDArray[np.float64]:
        kept = np.where(q >= np.partition(q, -k)[-k], q, 0.0)
        return drawn(p, kept / kept.sum())

    return of_likeliest


def coupled(p: Distribution, q: Distribution) -> NDArray[np.float64]:
    """Both draw i with probability 1 / sum_j max(p_j / p_i, q_j / q_i): the first is larger where p_j / q_j is."""
    both, equal = np.flatnonzero((p > 0) & (q > 0)), np.zeros_like(p)
    ratio = np.divide(p, q, out=np.full_like(p, np.inf), where=q > 0)
    order = np.argsort(ratio)
    from_p, from_q = np.empty_like(p), np.empty_like(q)
    from_p[order] = p[order][::-1].cumsum()[::-1]
    from_q[order] = q[order].cumsum() - q[order]
    equal[both] = 1 / (from_p[both] / p[both] + from_q[both] / q[both])
    return equal


KINDS: dict[str, DraftKind] = {"greedy": greedy, "coupled": coupled, "sparse 20": sparse(20), "drawn": drawn}
