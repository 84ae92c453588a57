"""F1: the confidence of a model in its next token, one number in [0, 1] computed from the logits.

A strategy is a pure function of a `Softmax`, vectorised over its rows; `STRATEGIES` holds those that the config names.
1 is certainty. p stands for softmax(logits) over the full vocabulary of V tokens.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import asdict
from numpy.typing import NDArray

from common.config_edge import ConfidenceConfig
from common.errors import ConfigError
from common.types import ConfidenceStrategy, TokenProb

__all__ = [
    "AblatedConfidenceCalculator",
    "ConfidenceCalculator",
    "ConfidenceEnsemble",
    "ConfidenceMetrics",
    "ConfidenceSettings",
    "ConfidenceStrategy",
    "Floats",
    "Softmax",
    "Strategy",
]

Floats = NDArray[np.floating[Any]]
Tokens = NDArray[np.integer[Any]]


class ConfidenceSettings(msgspec.Struct, frozen=True):
    """Parameters of the strategies: `temperature` > 0 for TEMPERATURE, `top_k` >= 1 for TOP_K_AGG."""

    temperature: float = 1.5
    top_k: int = 5

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"confidence.temperature: must be above 0, not {self.temperature}")
        if self.top_k < 1:
            raise ConfigError(f"confidence.top_k: must be at least 1, not {self.top_k}")


class ConfidenceMetrics(msgspec.Struct, frozen=True):
    """The mean, minimum and product of a draft's confidences, each in [0, 1]; all 1 for no tokens.

    `confidence` is the mean.
    """

    confidence: float
    minimum: float
    product: float


class Softmax(NamedTuple):
    """p of each row of [..., V] logits, as `weights` over their `total`; computed once for probabilities and F1.

    `below` are the logits minus the maximum of their row, so that no exponential overflows; `weights` are exp(below), 1
    for the likeliest token.
    """

    below: Floats
    weights: Floats
    total: Floats

    @classmethod
    def of(cls, logits: Floats) -> "Softmax":
        below = np.asarray(logits - logits.max(axis=-1, keepdims=True))
        weights = np.exp(below)
        return cls(below, weights, np.asarray(weights.sum(axis=-1)))

    def prob(self, tokens: Tokens) -> Floats:
        """p of one token in each row, [...]; in [0, 1]."""
        chosen = np.take_along_axis(self.weights, tokens[..., None], axis=-1)[..., 0]
        return np.asarray(chosen / self.total)


def max_prob(softmax: Softmax, settings: ConfidenceSettings) -> Floats:
    """max p: the probability of the likeliest token; [1/V, 1], 1/V for a uniform p."""
    return 1.0 / softmax.total


def entropy(softmax: Softmax, settings: ConfidenceSettings) -> Floats:
    """1 - H(p) / ln V with H = -sum p ln p over the full vocabulary; [0, 1], 0 for a uniform p."""
    below = np.maximum(softmax.below, -80.0)  # a logit of -inf would give 0 * -inf
    # Not vecdot: BLAS would wake threads that fight with llama.cpp's for the cores.
    mean_below = np.einsum("...v,...v->...", softmax.weights, below) / softmax.total
    uncertainty = np.log(softmax.total) - mean_below
    return np.asarray(np.clip(1.0 - uncertainty / math.log(below.shape[-1]), 0.0, 1.0))


def temperature(softmax: Softmax, settings: ConfidenceSettings) -> Floats:
    """max softmax(logits / T); [1/V, 1]. `python -m models.fit_temperature` finds the T that makes it calibrated."""
    return 1.0 / np.asarray(np.exp(softmax.below * (1.0 / settings.temperature)).sum(axis=-1))


def top_k_agg(softmax: Softmax, settings: ConfidenceSettings) -> Floats:
    """max p / (sum of the top_k largest p): the share of the likeliest among the k likeliest; [1/k, 1], 1 for k = 1."""
    k = min(settings.top_k, softmax.weights.shape[-1])
    return 1.0 / np.asarray(np.partition(softmax.weights, -k, axis=-1)[..., -k:].sum(axis=-1))


Strategy = Callable[[Softmax, ConfidenceSettings], Floats]
"""From a softmax of [..., V] to confidences, [...], in [0, 1]; called once per step, in the engine's thread."""

STRATEGIES: dict[ConfidenceStrategy, Strategy] = {
    ConfidenceStrategy.MAX_PROB: max_prob,
    ConfidenceStrategy.ENTROPY: entropy,
    ConfidenceStrategy.TEMPERATURE: temperature,
    ConfidenceStrategy.TOP_K_AGG: top_k_agg,
}


class ConfidenceCalculator:
    """Computes one strategy, a named one or your own function; the engine's thread calls `of_batch` once per step."""

    def __init__(
        self,
        strategy: ConfidenceStrategy | Strategy = ConfidenceStrategy.MAX_PROB,
        temperature: float = 1.5,
        top_k: int = 5,
    ) -> None:
        self.strategy = strategy if callable(strategy) else ConfidenceStrategy(strategy)
        if self.strategy is ConfidenceStrategy.ENSEMBLE:
            raise ConfigError(
                f"confidence.strategy: {self.strategy} combines several strategies: use ConfidenceEnsemble"
            )
        self.settings = ConfidenceSettings(temperature, top_k)
        self._function = strategy if callable(strategy) else STRATEGIES[ConfidenceStrategy(strategy)]

    def of_logits(self, logits: Floats) -> Floats:
        """The confidence of each row of `logits`, [..., V] to [...], in [0, 1]."""
        return self._of(Softmax.of(logits))

    def of_batch(self, logits: Floats, chosen: Tokens) -> tuple[Floats, Floats]:
        """The probabilities of the `chosen` tokens, [B], and the confidences, [B], in one pass over [B, V] logits."""
        softmax = Softmax.of(logits)
        return softmax.prob(chosen), self._of(softmax)

    def _of(self, softmax: Softmax) -> Floats:
        return self._function(softmax, self.settings)

    def calculate_confidence(self, token_probs: list[TokenProb]) -> ConfidenceMetrics:
        """The metrics of tokens already drawn.

        Their logits no longer exist. So a token counts with its `confidence` if the engine set it (by the engine's
        strategy), else with its `prob`; this calculator's own strategy plays no part.
        """
        values = [_of_token(token) for token in token_probs] or [1.0]
        return ConfidenceMetrics(math.fsum(values) / len(values), min(values), math.prod(values))

    def should_accept_draft(self, metrics: ConfidenceMetrics, threshold: float) -> bool:
        """Whether the mean confidence reaches `threshold`, in [0, 1]."""
        return metrics.confidence >= threshold


def confidence_of(config: ConfidenceConfig) -> Callable[[Floats, Tokens], tuple[Floats, Floats]]:
    """The `of_batch` of the strategy, or of the ensemble with its weights, that a config names."""
    if config.strategy is not ConfidenceStrategy.ENSEMBLE:
        return ConfidenceCalculator(config.strategy, config.temperature, config.top_k).of_batch
    used = {ConfidenceStrategy(name): weight for name, weight in asdict(config.weights).items() if weight}
    ensemble = ConfidenceEnsemble(list(used), config.temperature, config.top_k)
    return partial(ensemble.of_batch, weights=list(used.values()))


class AblatedConfidenceCalculator(ConfidenceCalculator):
    """F1 switched off: every token has confidence 1, every draft is accepted."""

    def _of(self, softmax: Softmax) -> Floats:
        return np.ones_like(softmax.total)

    def calculate_confidence(self, token_probs: list[TokenProb]) -> ConfidenceMetrics:
        """All three numbers are 1."""
        return ConfidenceMetrics(1.0, 1.0, 1.0)


class ConfidenceEnsemble:
    """The weighted mean of several strategies, in [0, 1]; without weights, the plain mean."""

    def __init__(
        self, strategies: Sequence[ConfidenceStrategy | Strategy], temperature: float = 1.5, top_k: int = 5
    ) -> None:
        if not strategies:
            raise ConfigError("confidence.strategies: an ensemble needs at least one")
        self.calculators = [ConfidenceCalculator(strategy, temperature, top_k) for strategy in strategies]

    def of_logits(self, logits: Floats, weights: Sequence[float] | None = None) -> Floats:
        """The ensemble's confidence of each row of `logits`, [..., V] to [...]."""
        return self._of(Softmax.of(logits), weights)

    def of_batch(self, logits: Floats, chosen: Tokens, weights: Sequence[float] | None = None) -> tuple[Floats, Floats]:
        """Like `ConfidenceCalculator.of_batch`; all strategies share one softmax."""
        softmax = Softmax.of(logits)
        return softmax.prob(chosen), self._of(softmax, weights)

    def ensemble_confidence(
        self, token_probs: list[TokenProb], weights: Sequence[float] | None = None
    ) -> tuple[float, dict[ConfidenceStrategy | Strategy, float]]:
        """The ensemble's mean confidence over tokens already drawn, and that of each strategy.

        For drawn tokens all strategies agree (see `ConfidenceCalculator.calculate_confidence`); they differ in
        `of_logits`.
        """
        scores = {c.strategy: c.calculate_confidence(token_probs).confidence for c in self.calculators}
        shares = self._shares(weights)
        return float(sum(share * scores[c.strategy] for share, c in zip(shares, self.calculators, strict=True))), scores

    def _of(self, softmax: Softmax, weights: Sequence[float] | None) -> Floats:
        scores = np.stack([calculator._of(softmax) for calculator in self.calculators], axis=-1)
        return np.asarray(scores @ self._shares(weights))

    def _shares(self, weights: Sequence[float] | None) -> Floats:
        """The weights, scaled to sum to 1."""
        shares = np.ones(len(self.calculators)) if weights is None else np.asarray(weights, np.float64)
        if shares.shape != (len(self.calculators),) or not (shares >= 0).all() or not 0 < shares.sum() < math.inf:
            raise ConfigError(f"confidence.weights: give {len(self.calculators)} numbers >= 0 with a sum above 0")
        return np.asarray(shares / shares.sum())


def _of_token(token: TokenProb) -> float:
    return token.prob if token.confidence is None else token.confidence
