"""Measures, intervals, differences and the report of an experiment, from made-up answers without a server."""

import random
from collections.abc import Iterable

import numpy as np
import pytest
from msgspec.structs import replace

from common.errors import ConfigError
from experiments.counters.cloud import CloudCounts
from experiments.counters.edge import EdgeCounts
from experiments.harness import measures, results
from experiments.harness.comparison import difference, evaluate, unchanged
from experiments.harness.measures import MEASURES, sample
from experiments.harness.results import RunDescription
from experiments.harness.statistics import draws, each_once, interval, quantiles, ratios
from experiments.harness.trials import ExperimentPlan, Trial, TrialResult
from experiments.report import document, schema
from experiments.report.schema import AnswerRow, Counts, Environment, ExperimentReport, NetworkCounts
from experiments.setup import ablations
from experiments.setup.configurations import configuration
from tests.experiments.test_ablation_plan import base

HERE = Environment(
    created="now", git_commit=None, machine="", cpu="", cpus=2, memory_gb=1.0, gpus=[], python="", versions={}
)
SOME = RunDescription(title="Some", environment=HERE, metric="exact_match", options={})


def entry(name: str, question: int, repeat: int, row: AnswerRow, counts: Counts) -> TrialResult:
    return TrialResult(what=Trial(name, repeat, (question,)), seconds=1.0, rows=[row], counts=counts)


def entries(
    name: str, questions: int = 30, repeats: int = 2, slower: float = 1.0, clock: int = 0, cloud: int = 2
) -> list[TrialResult]:
    """Answers whose counts depend on the question alone, and whose times are drawn anew for each `clock`."""
    found = []
    for repeat in range(repeats):
        for question in range(questions):
            counts, times = random.Random(question), random.Random(f"{clock} {name} {question} {repeat}")
            tokens, drafted = counts.randint(5, 40), counts.randint(1, 20)
            took = tokens * times.uniform(9, 11) * slower
            row = AnswerRow(
                question=question, repeat=repeat, text=f"text {question}", quality=float(question % 3 > 0),
                latency_ms=took, first_token_ms=took / 5, tokens=tokens,
                provenance={"edge": tokens - cloud, "accepted": cloud}, cloud_calls=1, cloud_steps=1, rounds=1,
                drafted=drafted, accepted=min(drafted, 3), bytes_up=100 + tokens, bytes_down=50 + times.randint(0, 3),
            )  # fmt: skip
            servers = Counts(
                edge=EdgeCounts(prefix=10 * tokens, prefix_computed=tokens),
                cloud=CloudCounts(verify_seconds=took / 2000, prefix=tokens, prefix_computed=3),
                network=NetworkCounts(bytes_up=500, bytes_down=400, connections=1),
            )
            found.append(entry(name, question, repeat, row, servers))
    return found


def changed(found: Iterable[TrialResult], **fields: object) -> list[TrialResult]:
    return [replace(one, rows=[replace(row, **fields) for row in one.rows]) for one in found]


def report(by_name: dict[str, list[TrialResult]]) -> ExperimentReport:
    chosen = ablations.chosen(",".join(by_name), [])
    plan = ExperimentPlan(
        configurations=[configuration(one, base()) for one in chosen], data="some", prompts_sha256="", questions=30,
        repeats=2, max_tokens=9, temperature=0.0, seed=0, network=None, config={},
    )  # fmt: skip
    return results.report(plan, [one for each in by_name.values() for one in each], SOME)


# -- statistics


def test_ratios_and_quantiles_of_questions_drawn_again_are_those_of_the_drawn_ones() -> None:
    rng = np.random.default_rng(5)
    amount, per, values = rng.uniform(1, 9, 12), rng.uniform(1, 9, 12), rng.uniform(0, 9, (12, 3))
    values[2, 1] = np.nan
    drawn = draws(12)
    for which in (0, 7, 99):
        again = np.repeat(np.arange(12), drawn[which].astype(int))
        assert ratios(drawn, amount, per)[which] == pytest.approx(amount[again].sum() / per[again].sum())
        flat = values[again].ravel()
        for share in (0.05, 0.5, 0.95):
            wanted = np.quantile(flat[~np.isnan(flat)], share, method="inverted_cdf")
            assert quantiles(drawn, values, share)[which] == pytest.approx(wanted)
    assert ratios(each_once(12), amount, per) == pytest.approx(amount.sum() / per.sum())
    assert np.isnan(ratios(each_once(2), np.zeros(2), np.zeros(2))).all()
    assert drawn.sum(axis=1).tolist() == [12] * len(drawn)


def test_an_interval_covers_the_true_value_95_times_in_100() -> None:
    rng, held = np.random.default_rng(1), 0
    for turn in range(200):
        values = rng.exponential(1.0, 60)
        low, high = interval(ratios(draws(60, turn), values, np.ones(60)))
        held += low <= 1.0 <= high
    assert 175 <= held <= 200


# -- measures


def test_measures_are_sums_over_sums() -> None:
    made = entries("baseline")
    rows = [row for one in made for row in one.rows]
    found = sample(made)

    def value(name: str) -> float:
        got = evaluate(MEASURES[name], found)
        assert got is not None and got.low <= got.value <= got.high
        return got.value

    tokens = sum(row.tokens for row in rows)
    assert value("latency_mean_ms") == pytest.approx(sum(row.latency_ms for row in rows) / len(rows))
    assert value("tokens_per_second") == pytest.approx(1000 * tokens / sum(row.latency_ms for row in rows))
    assert value("cloud_rate") == pytest.approx(2 * len(rows) / tokens)
    assert value("acceptance_rate") == sum(row.accepted for row in rows) / sum(row.drafted for row in rows)
    assert value("acceptance_length") == 1 + sum(row.accepted for row in rows) / len(rows)
    assert value("edge_kv_hit_rate") == pytest.approx(0.9)
    assert value("quality") == pytest.approx(20 / 30)
    assert value("success_rate") == 1
    assert value("connections") == 1


def test_an_undefined_measure_is_left_out() -> None:
    alone = changed(entries("edge_only"), drafted=0, accepted=0, rounds=0, quality=None)
    found = sample(alone)
    for name in ("acceptance_rate", "acceptance_length", "quality"):
        assert evaluate(MEASURES[name], found) is None
        assert difference(MEASURES[name], found, sample(entries("baseline"))) is None
    assert evaluate(MEASURES["accepted_tokens"], found) is not None


def test_failures_lower_the_success_rate_and_nothing_else() -> None:
    made = entries("baseline")
    failed = [
        replace(one, rows=[AnswerRow(question=one.rows[0].question, repeat=one.what.repeat, error="lost")])
        if one.what == Trial("baseline", 0, (4,))
        else one
        for one in made
    ]
    found = sample(failed)
    assert evaluate(MEASURES["success_rate"], found).value == pytest.approx(59 / 60)  # type: ignore[union-attr]
    assert evaluate(MEASURES["connections"], found).value == 1  # type: ignore[union-attr]
    everything = report({"baseline": failed, "edge_only": entries("edge_only")})
    assert everything.configurations[0].failures == 1
    assert everything.configurations[0].first_failure == "lost"
    assert everything.configurations[0].answers == 59


# -- differences


def test_a_difference_is_paired_by_question() -> None:
    """Lengths differ by a factor of eight between questions, speeds by a fifth: only pairing shows it."""
    slow, usual = sample(entries("edge_only", slower=1.2)), sample(entries("baseline"))
    found = difference(MEASURES["latency_mean_ms"], slow, usual)
    assert found is not None and found.clear and found.low > 0
    alone = [evaluate(MEASURES["latency_mean_ms"], each) for each in (slow, usual)]
    assert alone[0] and alone[1] and alone[0].low < alone[1].high, "their own intervals overlap"
    assert found.value == pytest.approx(alone[0].value - alone[1].value)


def test_a_configuration_without_effect_is_unchanged() -> None:
    """In another run times differ and counts do not."""
    usual = sample(entries("baseline"))
    same = [unchanged(MEASURES, sample(entries("edge_only", clock=clock)), usual) for clock in range(40)]
    assert all(same)
    assert unchanged(MEASURES, sample(entries("edge_only", slower=1.03)), usual), "another server of the same config"
    assert not unchanged(MEASURES, sample(entries("edge_only", slower=1.2)), usual)
    few = [sample(entries(name, questions=5, slower=slower)) for name, slower in (("edge_only", 1.2), ("baseline", 1))]
    assert unchanged(MEASURES, *few), "five questions say nothing about times"
    one_more = changed(entries("edge_only")[:1], cloud_calls=2) + entries("edge_only")[1:]
    assert not unchanged(MEASURES, sample(one_more), usual), "one call in one answer is a change"


# -- the report


def test_the_report_says_what_each_feature_contributes(tmp_path: object) -> None:
    found = report({
        "baseline": entries("baseline"),
        "no_confidence": entries("no_confidence", cloud=5),
        "no_kv_cache": entries("no_kv_cache", clock=1),
        "cloud_only": changed(entries("cloud_only"), text="another"),
    })  # fmt: skip
    by_name = {one.name: one for one in found.configurations}
    assert by_name["no_kv_cache"].unchanged and not by_name["no_confidence"].unchanged
    assert not by_name["baseline"].unchanged and not by_name["baseline"].differences
    gate = next(one for one in found.contributions if one.measure == "cloud_rate")
    assert (gate.feature, gate.configuration) == ("F1 confidence", "no_confidence")
    assert gate.without == pytest.approx(2.5 * gate.baseline) and gate.difference.clear
    assert {one.feature for one in found.contributions} == {"F1 confidence", "F3 KV cache"}
    assert by_name["baseline"].measures["agreement"].value == 0
    assert by_name["cloud_only"].measures["agreement"].value == 1
    assert by_name["cloud_only"].request == {"mode": "cloud_only"}
    assert by_name["no_confidence"].provenance["accepted"] == 5 * 60
    assert set(by_name["baseline"].measures) <= set(found.measures)
    assert [row.question for row in found.rows["baseline"]] == sorted(list(range(30)) * 2)


def test_the_report_is_read_back_as_it_was_written(tmp_path: pytest.TempPathFactory) -> None:
    found = report({"baseline": entries("baseline"), "edge_only": entries("edge_only")})
    file = tmp_path / "ablation_report.json"  # type: ignore[operator]
    document.write_json(found, file)
    assert schema.read(file) == found
    file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(ConfigError, match="version 99"):
        schema.read(file)


def test_without_cloud_only_there_is_nothing_to_agree_with() -> None:
    assert "agreement" not in measures.MEASURES
    assert "agreement" not in report({"baseline": entries("baseline")}).measures
