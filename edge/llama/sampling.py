"""Draws tokens from logits, reproducibly from a seed and a position; penalties and log probabilities.

Only the first pass of a filter reads the whole vocabulary; no filter sorts it.
"""

import secrets
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import EngineError
from common.types import Sampling, TokenLogprob

Logits = NDArray[np.float32]
"""Rows of logits, [V] or [B, V]; those in llama.cpp's memory are valid until its next step."""
GREEDY_BELOW = 1e-5
"""Lower temperatures mean greedy decoding, as in vLLM."""
BLOCK = 64
"""`kth_largest` first compares only the maxima of blocks of this many logits."""


def check_numbers(largest: NDArray[np.float32] | np.float32) -> None:
    """Raises EngineError unless the `largest` logit of each row, as `max` or `argmax` find it, is a number.

    Both find NaN before any number, so this tells of a whole row.
    """
    if not np.isfinite(largest).all():
        raise EngineError("the edge's model computes no numbers (NaN): its file is damaged")


def is_greedy(sampling: Sampling) -> bool:
    """Whether the likeliest token is always drawn."""
    return sampling.temperature < GREEDY_BELOW


def uniforms(sampling: Sampling, position: int, count: int) -> NDArray[np.float64]:
    """A random number in [0, 1) for each of `count` positions from `position` on, [count].

    They depend on the seed and the position only; without a seed they are different in each call.
    """
    if is_greedy(sampling):
        return np.zeros(count)
    seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
    # Philox yields four numbers for each value of its counter: one row per position.
    return np.random.Generator(np.random.Philox(key=seed, counter=position)).random((count, 4))[:, 0]


def draw(logits: Logits, sampling: Sampling, uniform: float) -> int:
    """The token that `uniform`, in [0, 1), selects from the distribution that `sampling` makes of `logits`, [V].

    Applies temperature, min-p, top-k and top-p in vLLM's order; the cumulative sum runs in the order of token ids.
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
    # The k largest block maxima are k of the logits, so a logit below all of them is not among the k largest.
    maxima = logits[:whole].reshape(-1, BLOCK).max(axis=1)
    bound = np.partition(maxima, -k)[-k]
    return float(np.partition(logits[logits >= bound], -k)[-k])


def _nucleus_floor(weights: NDArray[np.floating[Any]], top_p: float) -> float:
    """The smallest weight in the nucleus: the smallest set of largest weights with `top_p` of the sum."""
    total = weights.sum(dtype=np.float64)
    # The weights below this bound have less than 1 - top_p of the sum together: the nucleus is among the others.
    candidates = weights[weights >= (1 - top_p) * total / len(weights)]
    largest_first = np.sort(candidates)[::-1]
    mass = np.cumsum(largest_first, dtype=np.float64)
    return float(largest_first[np.searchsorted(mass[:-1], top_p * total)])


class Penalties:
    """OpenAI's penalties on tokens that already occurred; `add` must be called with each new token.

    Presence and frequency penalties count the tokens of the answer, the repetition penalty (a divisor, as in vLLM)
    those of the prompt too.
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
        """Changes `logits`, [V], in place."""
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
    """The penalties that `sampling` sets after `token_ids`; None if it sets none."""
    none = sampling.presence_penalty == sampling.frequency_penalty == 0 and sampling.repetition_penalty == 1
    return None if none else Penalties(sampling, token_ids)


def biased(logits: Logits, bias: Sequence[tuple[int, float]]) -> Logits:
    """A copy of `logits`, [V], with what `bias` adds to those of its tokens."""
    changed = logits.copy()
    tokens, values = zip(*bias, strict=True)
    changed[list(tokens)] += np.asarray(values, np.float32)
    return changed


def without(logits: Logits, tokens: Collection[int]) -> Logits:
    """A copy of `logits`, [V], in which `tokens` are impossible."""
    rest = logits.copy()
    rest[list(tokens)] = -np.inf
    return rest


def log_probabilities(logits: Logits, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """For each row of `logits`, [B, V], the log probability of its token, [B], and of the `top` likeliest tokens."""
    peaks = logits.max(axis=-1, keepdims=True)
    check_numbers(peaks)
    # Row by row: the logits may take hundreds of megabytes, and `row - peak` is a copy.
    totals = [float(peak[0]) + float(np.log(np.exp(row - peak).sum())) for row, peak in zip(logits, peaks, strict=True)]
    return [
        TokenLogprob(token, float(row[token]) - total, _likeliest(row, top, total))
        for row, token, total in zip(logits, tokens, totals, strict=True)
    ]


def _likeliest(row: Logits, count: int, total: float) -> list[tuple[int, float]]:
    if count <= 0:
        return []
    count = min(count, len(row))
    candidates = np.flatnonzero(row >= kth_largest(row, count))
    order = candidates[np.argsort(-row[candidates], kind="stable")][:count]
    return [(int(token), float(row[token]) - total) for token in order]
