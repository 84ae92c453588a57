"""Draws tokens from logits, reproducibly from a seed and a position. Pure: knows no model.

Only the first step of each filter looks at the whole vocabulary; no filter sorts it.
"""

import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.types import Sampling, TokenLogprob

Logits = NDArray[np.float32]
"""Rows of logits, [V] or [B, V]; where llama.cpp put them, valid until its next step."""
GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy, as they are for vLLM."""
BLOCK = 64
"""Logits of which only the largest is compared, when the k largest of all are looked for."""


def is_greedy(sampling: Sampling) -> bool:
    """Whether the likeliest token is drawn, whatever the random number."""
    return sampling.temperature < GREEDY_BELOW


def uniforms(sampling: Sampling, position: int, count: int) -> NDArray[np.float64]:
    """Two numbers in [0, 1) for each of `count` positions from `position` on, [count, 2], from seed and position."""
    if is_greedy(sampling):
        return np.zeros((count, 2))
    seed = secrets.randbits(64) if sampling.seed is None else sampling.seed % 2**64
    # Philox makes four numbers for each value of its counter: one row for each position.
    return np.random.Generator(np.random.Philox(key=seed, counter=position)).random((count, 4))[:, :2]


def draw(logits: Logits, sampling: Sampling, uniform: float) -> int:
    """The token that `uniform`, in [0, 1), picks from the distribution that `sampling` makes of `logits`, [V].

    Temperature first, then min-p, then top-k, then top-p, as vLLM has it. Tokens stand in the order of their ids.
    """
    if is_greedy(sampling):
        return int(logits.argmax())
    peak = logits.max()
    floor = -np.inf if sampling.min_p <= 0 else peak + sampling.temperature * np.log(sampling.min_p)
    if 0 < sampling.top_k < len(logits):
        floor = max(floor, kth_largest(logits, sampling.top_k))
    tokens = None if floor == -np.inf else np.flatnonzero(logits >= floor)
    kept = logits if tokens is None else logits[tokens]
    weights = np.exp((kept - peak) / sampling.temperature)
    if sampling.top_p < 1:
        weights[weights < _nucleus_floor(weights, sampling.top_p)] = 0
    mass = np.cumsum(weights, dtype=np.float64)
    chosen = int(np.searchsorted(mass[:-1], uniform * mass[-1], side="right"))
    return chosen if tokens is None else int(tokens[chosen])


def kth_largest(logits: Logits, k: int) -> float:
    """The k-th largest of `logits`, [V], 1 <= k <= V."""
    whole = len(logits) // BLOCK * BLOCK
    if k * BLOCK > whole:
        return float(np.partition(logits, -k)[-k])
    # The k largest of the blocks' maxima are k logits, so nothing below the least of them can be among the k largest.
    maxima = logits[:whole].reshape(-1, BLOCK).max(axis=1)
    bound = np.partition(maxima, -k)[-k]
    return float(np.partition(logits[logits >= bound], -k)[-k])


def _nucleus_floor(weights: NDArray[np.floating[Any]], top_p: float) -> float:
    """The least weight in the smallest set of largest weights that has `top_p` of their sum."""
    total = weights.sum(dtype=np.float64)
    # Weights under the floor have less than 1 - top_p of the sum together: the nucleus is among the others.
    among = weights[weights >= (1 - top_p) * total / len(weights)]
    largest_first = np.sort(among)[::-1]
    mass = np.cumsum(largest_first, dtype=np.float64)
    return float(largest_first[np.searchsorted(mass[:-1], top_p * total)])


class Penalties:
    """What OpenAI's penalties take from the logits of tokens already there; the engine tells it each new one.

    Presence and frequency count the answer's tokens, repetition (a divisor, as in vLLM) all.
    """

    def __init__(self, sampling: Sampling, token_ids: Sequence[int]) -> None:
        begin = len(token_ids) if sampling.prompt_tokens is None else sampling.prompt_tokens
        self._sampling = sampling
        self._answer = Counter(token_ids[begin:])
        self._all = set(token_ids) if sampling.repetition_penalty != 1 else set()

    def add(self, token: int) -> None:
        self._answer[token] += 1
        if self._sampling.repetition_penalty != 1:
            self._all.add(token)

    def apply(self, logits: Logits) -> None:
        """Changes `logits`, [V], where they are."""
        sampling = self._sampling
        if self._all:
            seen = np.fromiter(self._all, np.intp, len(self._all))
            values = logits[seen]
            repetition = np.float32(sampling.repetition_penalty)
            logits[seen] = np.where(values > 0, values / repetition, values * repetition)
        if self._answer and (sampling.presence_penalty or sampling.frequency_penalty):
            drawn = np.fromiter(self._answer.keys(), np.intp, len(self._answer))
            counts = np.fromiter(self._answer.values(), np.float32, len(self._answer))
            logits[drawn] -= np.float32(sampling.presence_penalty) + np.float32(sampling.frequency_penalty) * counts


def penalties(sampling: Sampling, token_ids: Sequence[int]) -> Penalties | None:
    """The penalties that `sampling` asks for after `token_ids`; None if there are none."""
    none = sampling.presence_penalty == sampling.frequency_penalty == 0 and sampling.repetition_penalty == 1
    return None if none else Penalties(sampling, token_ids)


def log_probabilities(logits: Logits, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """For each row of `logits`, [B, V], what the softmax says of one token and of the `top` likeliest."""
    peaks = logits.max(axis=-1, keepdims=True)
    # exp needs the difference as an array of its own; the logits may be hundreds of megabytes, so row by row.
    totals = [float(peak[0]) + float(np.log(np.exp(row - peak).sum())) for row, peak in zip(logits, peaks, strict=True)]
    return [
        TokenLogprob(token, float(row[token]) - total, _likeliest(row, top, total))
        for row, token, total in zip(logits, tokens, totals, strict=True)
    ]


def _likeliest(row: Logits, count: int, total: float) -> list[tuple[int, float]]:
    if count <= 0:
        return []
    count = min(count, len(row))
    among = np.flatnonzero(row >= kth_largest(row, count))
    order = among[np.argsort(-row[among], kind="stable")][:count]
    return [(int(token), float(row[token]) - total) for token in order]
