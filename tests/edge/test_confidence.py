"""Confidence: each strategy computes its formula and stays in its range."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from calibration import data as calibration_data
from calibration.temperature import BINS, Calibration
from common import config
from common.errors import ConfigError
from common.types import TokenProb
from edge.confidence import (
    STRATEGIES,
    AblatedConfidenceCalculator,
    ConfidenceCalculator,
    ConfidenceEnsemble,
    ConfidenceMetrics,
    ConfidenceSettings,
    ConfidenceStrategy,
    Floats,
    Softmax,
    confidence_of,
)
from models.corpus import questions as corpus

ROOT = Path(__file__).parents[2]
ROWS = np.random.default_rng(5).normal(0, 4, (50, 300)).astype(np.float32)
FORMULAS = {
    ConfidenceStrategy.MAX_PROB: lambda p: max(p),
    ConfidenceStrategy.ENTROPY: lambda p: 1 + sum(x * math.log(x) for x in p) / math.log(len(p)),
    ConfidenceStrategy.TEMPERATURE: lambda p: max(p) ** 0.5 / sum(x**0.5 for x in p),
    ConfidenceStrategy.TOP_K_AGG: lambda p: max(p) / sum(sorted(p)[-3:]),
}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def calculator(strategy: ConfidenceStrategy) -> ConfidenceCalculator:
    return ConfidenceCalculator(strategy, temperature=2.0, top_k=3)


def token(prob: float, confidence: float | None = None) -> TokenProb:
    return TokenProb(1, "x", prob, math.log(prob), confidence)


def test_every_strategy_has_its_function() -> None:
    assert set(STRATEGIES) == set(ConfidenceStrategy) - {ConfidenceStrategy.ENSEMBLE} == set(FORMULAS)
    with pytest.raises(ConfigError, match="ConfidenceEnsemble"):
        ConfidenceCalculator(ConfidenceStrategy.ENSEMBLE)


@every_strategy
def test_a_strategy_is_its_formula(strategy: ConfidenceStrategy) -> None:
    logits = ROWS.astype(np.float64)
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = [FORMULAS[strategy](row.tolist()) for row in probs]
    assert calculator(strategy).of_logits(ROWS).tolist() == pytest.approx(expected, abs=1e-4)


@every_strategy
def test_one_row_gives_the_same_alone_and_in_a_batch(strategy: ConfidenceStrategy) -> None:
    one_by_one = [float(calculator(strategy).of_logits(row)) for row in ROWS]
    assert calculator(strategy).of_logits(ROWS).tolist() == pytest.approx(one_by_one, abs=1e-6)


@every_strategy
def test_a_batch_gives_the_probabilities_of_its_tokens_and_the_confidences(strategy: ConfidenceStrategy) -> None:
    chosen = np.arange(len(ROWS))
    probs, confidences = calculator(strategy).of_batch(ROWS, chosen)
    exact = np.exp(ROWS.astype(np.float64))
    assert probs.tolist() == pytest.approx((exact[chosen, chosen] / exact.sum(axis=-1)).tolist(), rel=1e-4)
    assert confidences.tolist() == calculator(strategy).of_logits(ROWS).tolist()


@every_strategy
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e4, 1e30])
def test_extreme_logits_stay_in_range(strategy: ConfidenceStrategy, scale: float) -> None:
    scores = calculator(strategy).of_logits(ROWS * np.float32(scale))
    assert ((scores >= 0) & (scores <= 1)).all()


@every_strategy
def test_impossible_tokens_do_not_change_the_confidence(strategy: ConfidenceStrategy) -> None:
    masked, distant = ROWS.copy(), ROWS.copy()
    masked[:, ::2], distant[:, ::2] = -np.inf, -1e4
    scores = calculator(strategy).of_logits(masked)
    assert np.isfinite(scores).all()
    assert scores.tolist() == pytest.approx(calculator(strategy).of_logits(distant).tolist())


@every_strategy
def test_certainty_is_one_and_it_grows_with_the_first_token(strategy: ConfidenceStrategy) -> None:
    logits = np.zeros((40, 100), np.float32)
    logits[:, 7] = np.arange(40)
    scores = calculator(strategy).of_logits(logits)
    assert (np.diff(scores) >= -1e-6).all()
    assert scores[0] < 0.5
    assert scores[-1] == pytest.approx(1, abs=1e-4)


@every_strategy
def test_logits_are_not_modified(strategy: ConfidenceStrategy) -> None:
    before = ROWS.copy()
    calculator(strategy).of_logits(ROWS)
    assert (before == ROWS).all()


def test_metrics_are_mean_minimum_and_product() -> None:
    metrics = ConfidenceCalculator().calculate_confidence([token(0.5), token(0.9, confidence=0.25), token(1.0)])
    assert (metrics.confidence, metrics.minimum, metrics.product) == pytest.approx((1.75 / 3, 0.25, 0.125))


def test_no_tokens_have_confidence_one() -> None:
    assert ConfidenceCalculator().calculate_confidence([]) == ConfidenceMetrics(1.0, 1.0, 1.0)


def test_a_draft_is_accepted_from_its_threshold_on() -> None:
    metrics = ConfidenceCalculator().calculate_confidence([token(0.75)])
    accepted = [ConfidenceCalculator().should_accept_draft(metrics, threshold) for threshold in (0.7, 0.75, 0.8)]
    assert accepted == [True, True, False]


def test_without_f1_every_confidence_is_one() -> None:
    off = AblatedConfidenceCalculator()
    metrics = off.calculate_confidence([token(0.01)])
    assert metrics == ConfidenceMetrics(1.0, 1.0, 1.0)
    assert off.should_accept_draft(metrics, 1.0)
    assert off.of_logits(ROWS).tolist() == [1.0] * len(ROWS)
    assert off.of_batch(ROWS, ROWS.argmax(-1))[1].tolist() == [1.0] * len(ROWS)
    assert not ConfidenceCalculator().should_accept_draft(ConfidenceCalculator().calculate_confidence([token(0.01)]), 1)


def test_a_function_of_ones_own_is_a_strategy_alone_and_in_an_ensemble() -> None:
    def half(softmax: Softmax, settings: ConfidenceSettings) -> Floats:
        return np.full_like(softmax.total, settings.top_k / 10)

    assert ConfidenceCalculator(half, top_k=5).of_logits(ROWS).tolist() == [0.5] * len(ROWS)
    both = ConfidenceEnsemble([half, ConfidenceStrategy.MAX_PROB], top_k=5).of_logits(ROWS)
    assert both.tolist() == pytest.approx(((0.5 + ConfidenceCalculator().of_logits(ROWS)) / 2).tolist())


def test_an_ensemble_is_the_weighted_mean_of_its_strategies() -> None:
    strategies = [ConfidenceStrategy.MAX_PROB, ConfidenceStrategy.ENTROPY, ConfidenceStrategy.TOP_K_AGG]
    ensemble = ConfidenceEnsemble(strategies, temperature=2.0, top_k=3)
    single = [calculator(strategy).of_logits(ROWS) for strategy in strategies]
    assert ensemble.of_logits(ROWS).tolist() == pytest.approx(np.mean(single, axis=0).tolist())
    weighted = (4 * single[0] + 3 * single[1] + 3 * single[2]) / 10
    assert ensemble.of_logits(ROWS, weights=[4, 3, 3]).tolist() == pytest.approx(weighted.tolist())
    assert ensemble.of_logits(ROWS[0]).shape == ()
    probs, confidences = ensemble.of_batch(ROWS, ROWS.argmax(-1), weights=[4, 3, 3])
    assert probs.tolist() == pytest.approx(single[0].tolist())
    assert confidences.tolist() == pytest.approx(weighted.tolist())


def test_a_config_names_a_strategy_or_an_ensemble_with_its_weights() -> None:
    def found(*flags: str) -> list[float]:
        keys = config.load(flags=["edge.confidence.temperature=2", "edge.confidence.top_k=3", *flags], environment={})
        return confidence_of(keys.edge.confidence)(ROWS, ROWS.argmax(-1))[1].tolist()

    single = {strategy: calculator(strategy).of_logits(ROWS) for strategy in STRATEGIES}
    assert found("edge.confidence.strategy=entropy") == single[ConfidenceStrategy.ENTROPY].tolist()
    ensemble = "edge.confidence.strategy=ensemble"
    default = sum(
        weight * single[ConfidenceStrategy(name)]
        for name, weight in (("max_prob", 0.4), ("entropy", 0.3), ("top_k_agg", 0.3))
    )
    assert found(ensemble) == pytest.approx(np.asarray(default).tolist())
    own = [f"edge.confidence.weights.{name}={weight}" for name, weight in (("max_prob", 0), ("entropy", 0))]
    other = (single[ConfidenceStrategy.TOP_K_AGG] * 0.3 + single[ConfidenceStrategy.TEMPERATURE] * 0.6) / 0.9
    assert found(ensemble, *own, "edge.confidence.weights.temperature=0.6") == pytest.approx(other.tolist())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("{max_probe: 1}", r"weights\.max_probe: unknown key; did you mean 'max_prob'\?"),
        ("{ensemble: 1}", r"weights\.ensemble: unknown key"),
        ("{entropy: -0.1}", r"weights\.entropy: expected `float` >= 0"),
        ("{entropy: .inf}", r"weights\.entropy: expected `float` <= 1"),
        ("{entropy: .nan}", r"weights\.entropy: expected `float`"),
        ("{max_prob: 0, entropy: 0, top_k_agg: 0}", r"weights: are all 0"),
        ("[1, 2]", r"weights: expected `object`"),
    ],
)
def test_invalid_weights_are_refused_with_their_path(weights: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^edge\.confidence\.{message}"):
        config.load(flags=[f"edge.confidence.weights={weights}"], environment={})


def test_an_ensemble_scores_tokens_and_returns_each_strategys_score() -> None:
    ensemble = ConfidenceEnsemble([ConfidenceStrategy.MAX_PROB, ConfidenceStrategy.ENTROPY])
    score, individual = ensemble.ensemble_confidence([token(0.5), token(0.7)], weights=[0.4, 0.6])
    assert score == pytest.approx(0.6)
    assert individual == pytest.approx({ConfidenceStrategy.MAX_PROB: 0.6, ConfidenceStrategy.ENTROPY: 0.6})


@pytest.mark.parametrize("weights", [[1.0], [0, 0], [1, -1], [1, math.nan], [1, math.inf]])
def test_invalid_weights_are_refused(weights: list[float]) -> None:
    ensemble = ConfidenceEnsemble([ConfidenceStrategy.MAX_PROB, ConfidenceStrategy.ENTROPY])
    with pytest.raises(ConfigError, match="weights"):
        ensemble.of_logits(ROWS, weights)


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="temperature"):
        ConfidenceCalculator(temperature=0)
    with pytest.raises(ConfigError, match="top_k"):
        ConfidenceCalculator(top_k=0)
    with pytest.raises(ConfigError, match="strategies"):
        ConfidenceEnsemble([])


# Fitting the temperature


def drawn(temperature: float, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and tokens drawn from them at `temperature`: data on which that temperature is the calibrated one."""
    source = np.random.default_rng(3)
    logits = source.normal(0, 3, (count, 30)).astype(np.float32)
    weights = np.exp(logits.astype(np.float64) / temperature)
    sums = np.cumsum(weights, axis=-1)
    return logits, (sums < source.random((count, 1)) * sums[:, -1:]).sum(axis=-1)


@pytest.mark.parametrize("true", [0.6, 1.0, 2.5])
def test_the_fit_finds_the_temperature_that_tokens_were_drawn_at(true: float) -> None:
    calibration = Calibration(true * np.array([0.5, 0.8, 1.0, 1.25, 2.0]))
    calibration.add(*drawn(true))
    assert calibration.best == 2
    assert calibration.ece[2] < 0.05 < min(calibration.ece[0], calibration.ece[4])


def test_likelihood_and_calibration_error_are_their_definitions() -> None:
    logits, right = drawn(1.0, 500)
    calibration = Calibration(np.array([1.0]))
    for rows in np.array_split(np.arange(500), 7):
        calibration.add(logits[rows], right[rows])
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    assert calibration.nll[0] == pytest.approx(-np.log(probs[np.arange(500), right]).mean(), rel=1e-5)
    sure, hit = probs.max(axis=-1), probs.argmax(axis=-1) == right
    bins = np.digitize(sure, np.linspace(0, 1, BINS + 1)[1:-1])
    gaps = [abs(sure[bins == b].mean() - hit[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist())]
    assert calibration.ece[0] == pytest.approx(sum(gaps), rel=1e-4)


def test_questions_that_cannot_be_read_are_named_by_their_line(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": 5}\n')
    with pytest.raises(ConfigError, match=r"data\.jsonl, line 2: .*prompt"):
        calibration_data.read_answered(tmp_path / "data.jsonl")
    with pytest.raises(ConfigError, match="No such file"):
        calibration_data.read_answered(tmp_path / "none.jsonl")


def test_the_command_says_which_line_of_the_config_to_set(tmp_path: Path) -> None:
    lines = [{"prompt": prompt, "answer": answer} for _, prompt, answer in corpus.held_out_pairs()[::100]]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = [sys.executable, "-m", "models.fit_temperature", "--data", str(tmp_path / "data.jsonl")]
    said = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=120, check=True).stdout
    before, after = (float(number) for number in re.findall(r"likelihood +([\d.]+) -> +([\d.]+)", said)[0])
    assert after < before
    found = re.search(r"(edge\.confidence\.temperature): ([\d.]+)", said)
    assert found is not None
    chosen = config.load(flags=[f"{found[1]}={found[2]}"], environment={}).edge.confidence.temperature
    assert chosen == float(found[2])
