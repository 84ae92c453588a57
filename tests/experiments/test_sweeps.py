"""Sweeps over thresholds and clients: which servers they need, their curves and areas. Without a server."""

import numpy as np
import pytest
from msgspec.structs import replace
from rich.console import Console

from common import config as configs
from common.errors import ConfigError
from common.types import ConfidenceStrategy, Mode
from experiments import scaling, threshold_sweep
from experiments.harness import experiment, measures, results
from experiments.harness.areas import areas, under
from experiments.harness.experiment import ExperimentKind
from experiments.harness.measures import MEASURES
from experiments.harness.options import client_counts
from experiments.harness.trials import ExperimentPlan, TrialResult, trials
from experiments.questions.datasets import Dataset
from experiments.questions.workload import Question
from experiments.report import sweep_words
from experiments.report.schema import ExperimentReport, Series
from experiments.setup import ablations
from experiments.setup.ablations import Ablation
from experiments.setup.configurations import Configuration, Needs, configuration
from tests.experiments.test_ablation_measures import SOME, changed, entries
from tests.experiments.test_ablation_plan import base

STRATEGIES = "max_prob,entropy,ensemble"


def made(points: list[Ablation]) -> list[Configuration]:
    return [configuration(one, base()) for one in points]


def thresholds(strategies: str = STRATEGIES, at: str = "0.5,0.9", products: str = "0") -> dict[str, list[Ablation]]:
    return {one.name: points for one, points in threshold_sweep.series(strategies, at, products)}


# -- thresholds


def test_a_strategy_has_one_edge_and_requests_carry_its_thresholds() -> None:
    found = {name: made(points) for name, points in thresholds().items()}
    assert list(found) == ["max_prob", "entropy", "ensemble"]
    for name, points in found.items():
        edge = () if name == "max_prob" else (f'edge.confidence.strategy="{name}"',)
        assert {one.needs for one in points} == {Needs(edge=edge)}
        assert [one.fields for one in points] == [
            {"confidence_threshold": at, "product_threshold": 0.0} for at in (0.5, 0.9)
        ]
    everything = [
        ablations.BASELINE,
        *threshold_sweep.ENDS,
        *(one for points in thresholds().values() for one in points),
    ]
    assert len({one.needs for one in made(everything)}) == 4, "an edge for each strategy, and one that streams"


def test_the_default_sweep_has_every_strategy_from_edge_only_to_cloud_only() -> None:
    args = threshold_sweep.parser().parse_args([])
    found = thresholds(args.strategies, args.thresholds, args.product_thresholds)
    assert set(found) == set(ConfidenceStrategy)
    assert [one.mode for one in threshold_sweep.ENDS] == [Mode.EDGE_ONLY, Mode.CLOUD_ONLY]
    names = [one.name for points in found.values() for one in points]
    assert len(set(names)) == len(names) == 5 * 8


def test_each_product_threshold_is_a_curve() -> None:
    found = thresholds("entropy", "0.9,0.5", "0,0.3")
    assert list(found) == ["entropy, product 0", "entropy, product 0.3"]
    assert [one.fields for one in made(found["entropy, product 0.3"])] == [
        {"confidence_threshold": 0.5},
        {"confidence_threshold": 0.9},
    ], "0.3 is what the config says"


@pytest.mark.parametrize(
    ("given", "message"),
    [(("nothing", "0.5", "0"), "--strategies: no strategy 'nothing'; there are max_prob, .*ensemble"),
     (("entropy", "0.5,1.5", "0"), "--thresholds takes numbers from 0 to 1, not 1.5"),
     (("entropy", "0.5", "x"), "--product-thresholds")],
)  # fmt: skip
def test_an_invalid_strategy_or_threshold_is_refused(given: tuple[str, str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        threshold_sweep.series(*given)


async def test_the_online_gate_is_refused() -> None:
    args = threshold_sweep.parser().parse_args(["--set", "inference.online.target_cloud_rate=0.3"])
    with pytest.raises(ConfigError, match=r"^inference\.online"):
        await threshold_sweep.measure(args, Console(quiet=True))


# -- clients


def test_every_ablation_answers_the_same_questions_with_every_number_of_clients() -> None:
    ways = ablations.chosen(scaling.ONLY, [])
    curves = scaling.series(ways, client_counts("4,1,2"))
    assert [one.name for one, _ in curves] == ["baseline", "no_confidence", "edge_only", "cloud_only"]
    args = scaling.parser().parse_args(["--data", "x"])
    config = experiment.base_config(args, scaling.settings([1, 2, 4]))
    asked = Dataset("some", "exact_match", [Question(f"q{n}") for n in range(8)])
    kind = ExperimentKind(title="", name="", program="", plan_fields={"block": 4})
    plan = experiment.plan_of(args, config, [one for _, points in curves for one in points], asked, kind)
    assert [one.clients for one in plan.configurations] == [1, 2, 4] * 4
    assert plan.configurations[0].name == "baseline, 1 client"
    by_configuration: dict[str, list[tuple[int, ...]]] = {}
    for trial in trials(plan):
        by_configuration.setdefault(trial.configuration, []).append(trial.questions)
    assert len(by_configuration) == 12
    assert len({tuple(found) for found in by_configuration.values()}) == 1
    assert {one.needs for one in plan.configurations} == {Needs(streams=True)}, "one edge for all"


def test_the_servers_have_room_for_all_clients() -> None:
    config = configs.load(None, scaling.settings([1, 48]), {})
    assert config.edge.model.sequences == config.cloud.draft_verifier.resident_sessions == 48
    assert configs.load(None, scaling.settings([1]), {}).edge.model.sequences == 4
    assert configs.load(None, scaling.settings([scaling.MAX_CLIENTS]), {}).edge.model.sequences == scaling.MAX_CLIENTS


@pytest.mark.parametrize("clients", ["0", "1.5", "65", "a", ""])
def test_an_invalid_number_of_clients_is_refused(clients: str) -> None:
    with pytest.raises(ConfigError, match="--clients"):
        client_counts(clients, scaling.MAX_CLIENTS)
    assert client_counts("16,1,4,4", scaling.MAX_CLIENTS) == [1, 4, 16]


def scaled() -> ExperimentReport:
    """Two ablations; the trials of one take half as long with four clients."""
    curves = scaling.series(ablations.chosen("baseline,cloud_only", []), [1, 4])
    points = [one for _, each in curves for one in each]
    seconds = {"baseline, 1 client": 4.0, "baseline, 4 clients": 2.0, "cloud_only, 1 client": 12.0}
    found = [
        replace(entry, seconds=seconds.get(one.name, 6.0), what=replace(entry.what, configuration=one.name))
        for one in points
        for entry in entries(one.name, questions=9)
    ]
    plan = ExperimentPlan(
        configurations=made(points), data="some", prompts_sha256="", questions=9, repeats=2, max_tokens=9,
        temperature=0.0, seed=0, network=None, config={},
    )  # fmt: skip
    report = reported(plan, found, scaling.MEASURES)
    scaling.finish([one for one, _ in curves], curves[1][0], report, plan, found)
    return report


def reported(
    plan: ExperimentPlan, found: list[TrialResult], more: dict[str, measures.MeasureDefinition]
) -> ExperimentReport:
    return results.report(plan, found, SOME, more)


def test_throughput_is_compared_with_one_client_and_with_cloud_only() -> None:
    report = scaled()
    by_name = {one.name: one.measures for one in report.configurations}
    rows = report.rows["baseline, 4 clients"]
    assert by_name["baseline, 4 clients"]["throughput"].value == pytest.approx(sum(r.tokens for r in rows) / (2 * 18))
    for name, one_client, cloud_only in (
        ("baseline, 1 client", 1, 3), ("baseline, 4 clients", 2, 3), ("cloud_only, 4 clients", 2, None),
    ):  # fmt: skip
        over = by_name[name]["over_one_client"]
        assert (over.value, over.low, over.high) == pytest.approx((one_client,) * 3), "it is so in every trial"
        found = by_name[name].get("over_cloud_only")
        assert found is None if cloud_only is None else found and found.value == pytest.approx(cloud_only)
    assert {"over_one_client", "over_cloud_only"} <= report.measures.keys()
    text = "\n".join(map(str, sweep_words.summary(report)))
    assert "baseline, 4 clients: throughput" in text
    assert any("intervals are over 9 trials" in warning for warning in report.warnings)


# -- areas


def test_an_area_is_the_mean_over_all_rates_whatever_the_order_of_the_points() -> None:
    rates, values = np.array([[0.0, 1.0, 0.25]]), np.array([[0.4, 1.0, 0.8]])
    assert under(rates, values) == pytest.approx([0.25 * 0.6 + 0.75 * 0.9])
    rng = np.random.default_rng(0)
    rates = np.concatenate([np.zeros((50, 1)), np.ones((50, 1)), rng.random((50, 6))], axis=1)
    values = rng.random((50, 8))
    for row in range(50):
        order = np.argsort(rates[row])
        exact = np.trapezoid(values[row, order], rates[row, order])
        assert under(rates, values)[row] == pytest.approx(exact)
    assert under(rates, np.full((50, 8), 0.7)) == pytest.approx(0.7)


def curve(cloud: int, better: int) -> list[TrialResult]:
    """Every answer has `cloud` tokens of the cloud's, and the first `better` questions are answered rightly."""
    found = entries("any", cloud=cloud)
    return [
        replace(one, rows=[replace(row, quality=float(row.question < better), tokens=4,
                                   provenance={"edge": 4 - cloud, "accepted": cloud}) for row in one.rows])
        for one in found
    ]  # fmt: skip


def test_the_best_curve_has_more_at_the_same_rate_and_differences_are_paired() -> None:
    samples = {
        "edge_only": measures.sample(curve(0, 10)),
        "cloud_only": measures.sample(curve(4, 30)),
        "good": measures.sample(curve(2, 30)),
        "same": measures.sample(curve(2, 30)),
        "chance": measures.sample(curve(2, 20)),
    }
    series = [Series(name=name, configurations=[name], at=[0.5]) for name in ("chance", "good", "same")]
    ends = ["edge_only", "cloud_only"]
    chance, good, same = areas(series, ends, samples, MEASURES["cloud_rate"], MEASURES["quality"], "quality")
    assert good.to_best is None
    assert good.area.value == pytest.approx((10 / 30 + 1) / 2 * 0.5 + 0.5)
    assert good.to_line.clear and good.to_line.value == pytest.approx(good.area.value - chance.area.value)
    assert chance.area.value == pytest.approx((10 / 30 + 1) / 2)
    assert chance.to_best is not None and chance.to_best.clear and chance.to_best.value < 0
    assert same.to_best is not None and (same.to_best.low, same.to_best.high) == (0, 0), "the same draws for all"


def test_areas_use_the_questions_that_all_configurations_answered() -> None:
    failed = changed(curve(2, 30), error="lost")
    samples = {name: measures.sample(curve(n, 20)) for n, name in ((0, "edge_only"), (4, "cloud_only"))}
    series = [Series(name="a", configurations=["a"], at=[0.5])]
    rate, quality = MEASURES["cloud_rate"], MEASURES["quality"]
    assert areas(series, list(samples), samples | {"a": measures.sample(failed)}, rate, quality, "quality") == []
    half = [*curve(2, 30)[::2], *failed[1::2]]
    (found,) = areas(series, list(samples), samples | {"a": measures.sample(half)}, rate, quality, "quality")
    assert found.area.low <= found.area.value <= found.area.high
