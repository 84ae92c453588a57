"""Small sweeps over thresholds and clients on real engines."""

from pathlib import Path

import pytest
from rich.console import Console

from experiments import scaling, threshold_sweep
from experiments.harness import experiment
from experiments.report import schema
from experiments.report.schema import ExperimentReport
from tests.conftest import Servers
from tests.experiments.test_ablation_experiment import edges_before

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.long]


def value(report: ExperimentReport, name: str, measure: str) -> float:
    return next(one for one in report.configurations if one.name == name).measures[measure].value


async def test_a_higher_threshold_raises_cloud_rate_and_agreement(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "fleet", edges_before(servers))
    flags = [
        "--questions",
        "8",
        "--thresholds",
        "0,0.7,1",
        "--strategies",
        "entropy,ensemble",
        "--output",
        str(tmp_path),
    ]
    report = await threshold_sweep.measure(
        threshold_sweep.parser().parse_args([*flags, "--output", str(tmp_path)]), Console(quiet=True)
    )
    assert schema.read(tmp_path / "threshold_report.json") == report
    for strategy in ("entropy", "ensemble"):
        rates = [value(report, f"{strategy} {at}", "cloud_rate") for at in ("0", "0.7", "1")]
        assert rates[0] == 0 < rates[1] < rates[2]
        assert value(report, f"{strategy} 0", "agreement") == value(report, "edge_only", "agreement")
        assert value(report, f"{strategy} 1", "agreement") == value(report, "cloud_only", "agreement") == 1
    assert value(report, "entropy 0.7", "cloud_rate") != value(report, "ensemble 0.7", "cloud_rate"), "two strategies"
    assert report.sweep is not None
    assert {(one.series, one.measure) for one in report.sweep.areas} == {
        (strategy, measure) for strategy in ("entropy", "ensemble") for measure in ("quality", "agreement")
    }
    assert not any(one.failures for one in report.configurations)


async def test_many_clients_get_the_same_answers_and_share_the_clouds_steps(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "fleet", edges_before(servers))
    flags = ["--questions", "8", "--clients", "1,4", "--only", "no_confidence,cloud_only", "--output", str(tmp_path)]
    report = await scaling.measure(scaling.parser().parse_args(flags), Console(quiet=True))
    assert schema.read(tmp_path / "scaling_report.json") == report
    assert not any(one.failures for one in report.configurations)
    alone = [row.text for row in report.rows["cloud_only, 1 client"]]
    for name in ("cloud_only, 4 clients", "no_confidence, 1 client", "no_confidence, 4 clients"):
        assert [row.text for row in report.rows[name]] == alone, name
    steps = [value(report, f"cloud_only, {n}", "cloud_steps_per_token") for n in ("1 client", "4 clients")]
    assert steps[1] < 0.7 * steps[0], "one step computes for several"
    assert value(report, "baseline, 4 clients", "over_one_client") > 0
    assert value(report, "no_confidence, 1 client", "over_cloud_only") > 0
