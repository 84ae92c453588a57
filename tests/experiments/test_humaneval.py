"""HumanEval: which ways are asked what, what the report says of them, resuming, and the end of the time."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from calibration.risk import wilson
from common import config as configs
from common.errors import ConfigError
from experiments import humaneval
from experiments.harness import experiment
from experiments.harness.measures import Sample, UnitResult
from experiments.pass_rate import pass_measures, ways
from experiments.pass_rate.beside_cloud import cheapest
from experiments.pass_rate.cross_fitted import choose, cross_fitted
from experiments.report import schema
from experiments.report.schema import AnswerRow, ConfigurationReport, ExperimentReport, Measure
from experiments.setup.ablations import Ablation
from experiments.setup.configurations import Configuration, configuration
from tests.conftest import Servers
from tests.experiments.test_ablation_experiment import edges_before
from tests.experiments.test_ablation_plan import base
from tests.experiments.test_ablation_run import FakeEdge, edge

__all__ = ["edge"]

TASKS = 4
POINTS = ("--thresholds", "0.5,0.1,4", "0.9,0")


def task(number: int) -> dict[str, str]:
    """The fake edge repeats the question, whose function returns nothing: it passes the tests of the even tasks."""
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def f{number}():\n    """Returns something, number {number}."""\n',
        "entry_point": f"f{number}",
        "canonical_solution": "    return None\n",
        "test": f"def check(candidate):\n    assert candidate() is None and {number} % 2 == 0\n",
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "HumanEval.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(task(n)) + "\n" for n in range(TASKS)).encode()))
    return file


async def run(data: Path, *flags: str) -> ExperimentReport:
    options = ["--data", str(data), "--output", str(data.parent / "out"), *flags]
    return await humaneval.measure(humaneval.parser().parse_args(options), Console(quiet=True))


def fields(one: Ablation) -> dict[str, Any]:
    return configuration(one, base()).fields


# -- the ways


def test_each_way_is_a_field_of_the_request_and_one_pair_of_servers_serves_all(tmp_path: Path) -> None:
    calibrated = tmp_path / "calibrated.yaml"
    gate = "{threshold: 0.42, product_threshold: 0.2}"
    calibrated.write_text(f"edge: {{confidence: {gate}}}\ninference: {{max_draft_tokens: 5}}\n")
    found = ways.chosen("edge_only,cloud_only,lossless,gated", POINTS[1:], str(calibrated))
    assert {one.name: fields(one) for one in found} == {
        "edge_only": {"mode": "edge_only", "collaboration": {"tokens": True}},
        "cloud_only": {"mode": "cloud_only"},
        "lossless": {"use_confidence_check": False},
        "gated": {},
        "gated 0.5, 0.1, 4": {"confidence_threshold": 0.5, "product_threshold": 0.1, "max_draft_tokens": 4},
        "gated 0.9, 0": {"confidence_threshold": 0.9, "product_threshold": 0.0},
        "calibrated": {"confidence_threshold": 0.42, "product_threshold": 0.2, "max_draft_tokens": 5},
    }
    assert len({made(one).needs for one in found}) == 1
    assert [one.name for one in found if ways.is_gate(one)] == [one.name for one in found][3:]


def made(one: Ablation) -> Configuration:
    return configuration(one, configs.load(flags=humaneval.SETTINGS, environment={}))


def test_a_gate_with_another_strategy_gets_its_own_edge(tmp_path: Path) -> None:
    calibrated = tmp_path / "calibrated.yaml"
    calibrated.write_text("edge: {confidence: {strategy: entropy}}\n")
    default, own = ways.chosen("gated", [], str(calibrated))
    assert made(own).needs.edge == ('edge.confidence.strategy="entropy"',) != made(default).needs.edge


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--ways", "edge"],
            "--ways: there is no 'edge', only edge_only, cloud_only, lossless, route, gated, calibrated",
        ),
        (["--ways", "calibrated"], "calibrated needs --calibrated FILE"),
        (
            ["--thresholds", "0.5"],
            "--thresholds takes CONFIDENCE,PRODUCT or CONFIDENCE,PRODUCT,DRAFT",
        ),
        (["--thresholds", "0.5,1.5"], "numbers from 0 to 1, not '0.5,1.5'"),
        (["--tasks", "one"], "--tasks takes numbers and ranges, for example 0-81,100, not 'one'"),
        (["--tasks", "7-9"], "has no task 7-9"),
        (["--tasks", "0-1,500"], "has no task 500"),
        (["--tasks", "9-99999999999999"], "has no task 9-99999999999999"),
        (["--thresholds", "0.5,0.1,inf"], "--thresholds takes CONFIDENCE,PRODUCT or .*, not '0.5,0.1,inf'"),
        (["--thresholds", "0.5,0.1,4.7"], "--thresholds takes CONFIDENCE,PRODUCT or .*, not '0.5,0.1,4.7'"),
        (["--thresholds", "0.5,0.1,-4"], "--thresholds takes drafts of 1 to 128 tokens, not '0.5,0.1,-4'"),
        (["--questions", "0"], "--questions must be at least 1"),
        (["--calibrated", "missing.yaml"], "missing.yaml"),
        (["--set", "inference.online.target_cloud_rate=0.3"], "online gate moves its thresholds"),
    ],
)
async def test_invalid_options_are_refused_before_anything_starts(flags: list[str], message: str, data: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        await run(data, *flags)
    with pytest.raises(ConfigError, match="--data is missing"):
        await humaneval.measure(humaneval.parser().parse_args([]), Console(quiet=True))
    assert not (data.parent / "out").exists()


async def test_the_tasks_of_a_list_are_asked(edge: FakeEdge, data: Path) -> None:
    found = await run(data, "--tasks", "0-1,3", "--ways", "edge_only")
    assert found.workload.questions == 3
    asked = {body["messages"][0]["content"].partition("number ")[2][0] for body in edge.answers}
    assert asked == {"0", "1", "3"}


# -- the report


async def test_an_answer_counts_if_it_passes_its_tests(edge: FakeEdge, data: Path) -> None:
    found = await run(data, *POINTS)
    out = data.parent / "out"
    assert {path.name for path in out.iterdir()} == {f"humaneval_report.{kind}" for kind in ("json", "md", "html")}
    assert schema.read(out / "humaneval_report.json") == found
    assert found.baseline == "cloud_only"
    for one in found.configurations:
        rate = one.measures["quality"]
        assert (rate.value, (rate.low, rate.high)) == (0.5, wilson(TASKS // 2, TASKS))
        assert one.measures["cloud_computed"].value == 2, "the draft of two tokens"
    assert all(body["stop"] == ["\n```\n\n"] for body in edge.answers)
    assert found.sweep is not None
    (curve,) = found.sweep.series
    assert (curve.configurations, curve.at) == (["gated", "gated 0.5, 0.1, 4", "gated 0.9, 0"], [0.8, 0.5, 0.9])
    (table,) = found.tables
    assert table.rows[2][:4] == ["lossless", "0.500 [0.150, 0.850]", "2 of 4", "0.000 [0.000, 0.000]"]
    assert table.rows[-1][0] == "gate chosen on other tasks"
    assert found.findings == [
        "Of the ways whose pass@1 is at most 2 points below cloud only's, edge_only has the cloud compute least: "
        "100% of cloud only's tokens",
        "Chosen for each block of tasks on all other blocks (gated), a gate's pass@1 minus cloud only's is "
        "0.000 [0.000, 0.000], with 1.00 [1.00, 1.00] of its cloud-computed tokens",
    ]


async def test_each_task_is_asked_in_every_way_before_the_next_in_a_new_order(edge: FakeEdge, data: Path) -> None:
    await run(data)
    asked = [body["messages"][0]["content"] for body in edge.answers]
    assert [len(set(asked[n : n + 4])) for n in range(0, len(asked), 4)] == [1] * TASKS
    orders = {str([body.get("mode") for body in edge.answers[n : n + 4]]) for n in range(0, len(asked), 4)}
    assert len(orders) > 1


async def test_as_a_completion_the_tasks_own_text_is_continued(edge: FakeEdge, data: Path) -> None:
    found = await run(data, "--form", "completion")
    assert {body["prompt"] for body in edge.asked} == {task(n)["prompt"] for n in range(TASKS)}
    assert all("\ndef" in body["stop"] for body in edge.answers)
    assert [one.measures["quality"].value for one in found.configurations] == [0.5] * 4


def test_the_cheapest_way_that_keeps_pass_at_1_is_found() -> None:
    figures = {"cloud_only": (0.5, 100.0), "edge_only": (0.3, 0.0), "gated": (0.47, 30.0), "calibrated": (0.49, 55.0)}
    report = SimpleNamespace(baseline="cloud_only", findings=[], configurations=[])
    for name, (rate, computed) in figures.items():
        measures = {"quality": Measure(rate, rate, rate), "cloud_computed": Measure(computed, computed, computed)}
        report.configurations.append(SimpleNamespace(name=name, measures=measures))
    cheapest(report)  # type: ignore[arg-type]
    (finding,) = report.findings
    assert "calibrated has the cloud compute least: 55% of cloud only's tokens" in finding


def test_a_gate_is_judged_on_tasks_that_did_not_choose_it() -> None:
    """The cheap gate fails one task of four: whoever chooses without that task takes it, and is judged on that task."""
    definitions = pass_measures.definitions(64)

    def sample(passing: list[int], drafted: int) -> Sample:
        rows = [
            AnswerRow(question=n, repeat=0, quality=float(n in passing), drafted=drafted, provenance={"cloud": 1})
            for n in range(4)
        ]
        return {(row.question,): UnitResult(rows=[row]) for row in rows}

    cloud = sample([0, 1, 2, 3], 100)
    gates = {"cheap": sample([0, 1, 2], 10), "exact": sample([0, 1, 2, 3], 60)}
    found, chosen = cross_fitted(gates, cloud, definitions)
    assert chosen == ["cheap", "exact"]
    assert [found[n,].rows[0].drafted for n in range(4)] == [60, 60, 60, 10]
    assert found[3,].rows[0].quality == 0
    assert choose({"cheap": gates["cheap"], "none": sample([], 0)}, cloud, definitions, sorted(cloud)) == "cheap"


def test_what_the_cloud_computed_is_what_it_verified_and_generated() -> None:
    drafted = {"accepted": 3, "recovered": 1, "edge": 6, "bonus": 0, "cloud": 0}
    row = AnswerRow(question=0, repeat=0, provenance=drafted, drafted=5, accepted=3)
    assert pass_measures.cloud_computed(row) == 5 + 1
    assert pass_measures.cloud_computed(AnswerRow(question=0, repeat=0, provenance={"cloud": 9})) == 9


# -- time and resuming


async def test_when_the_time_is_over_the_task_is_finished_and_a_resumed_run_does_the_others(
    edge: FakeEdge, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "time", SimpleNamespace(monotonic=lambda: 61.0 if edge.answers else 0.0))
    first = await run(data, "--minutes", "1")
    assert [one.answers for one in first.configurations] == [1] * 4
    assert any("12 of 16 trials are not done yet" in one for one in first.warnings)
    with pytest.raises(ConfigError, match="already exists: continue with --resume"):
        await run(data)
    second = await run(data, "--resume")
    assert [one.answers for one in second.configurations] == [TASKS] * 4
    assert len(edge.answers) == 4 * TASKS, "nothing was asked twice"
    assert second.warnings == [one for one in first.warnings if "not done" not in one]


# -- real servers


@pytest.mark.long
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("form", ["chat", "completion"])
async def test_the_demo_pair_is_measured_in_both_forms(
    form: str, servers: Servers, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "fleet", edges_before(servers))
    found = await run(data, "--form", form, "--questions", "2", "--max-tokens", "24", *POINTS)
    by_name = {one.name: one for one in found.configurations}
    assert not any(one.failures for one in found.configurations)
    assert texts(found, "lossless") == texts(found, "cloud_only")
    assert value(by_name["edge_only"], "cloud_computed") == value(by_name["edge_only"], "engine_steps") == 0
    cloud = by_name["cloud_only"]
    assert value(cloud, "cloud_computed") == value(cloud, "tokens")
    assert value(cloud, "engine_tokens") >= value(cloud, "tokens") - 1
    assert value(by_name["gated 0.9, 0"], "cloud_rate") <= value(by_name["lossless"], "cloud_rate") == 1


def texts(report: ExperimentReport, name: str) -> list[str]:
    return [row.text for row in report.rows[name]]


def value(one: ConfigurationReport, measure: str) -> float:
    return one.measures[measure].value
