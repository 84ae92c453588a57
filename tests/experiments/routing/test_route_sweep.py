"""Routers and gates compared by recorded answers: from a report, from a journal, and of the wrong questions."""

import json
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from common.errors import ConfigError
from experiments import route_sweep
from experiments.harness import experiment
from experiments.report.schema import AnswerRow, ExperimentReport
from experiments.routing.recorded import billed
from tests.experiments.test_ablation_run import FakeEdge, edge
from tests.experiments.test_humaneval import data, run

__all__ = ["data", "edge"]

THROUGH = ("--ways", "edge_only,cloud_only,lossless", "--thresholds", "0.5,0", "0.9,0")


async def swept(*flags: str) -> ExperimentReport:
    return await route_sweep.measure(route_sweep.parser().parse_args(flags), Console(quiet=True))


def free_at_the_edge(report: Path) -> None:
    """The fake edge answers in all ways alike: let edge only cost nothing, and fail a task that passes."""
    tree = json.loads(report.read_text())
    for row in (row for rows in tree["rows"].values() for row in rows):
        row["cloud_calls"] = 1
    for row in tree["rows"]["edge_only"]:
        row |= {"drafted": 0, "provenance": {"edge": 3}, "cloud_calls": 0}
    next(row for row in tree["rows"]["edge_only"] if row["quality"] == 1)["quality"] = 0.0
    report.write_text(json.dumps(tree))


async def test_the_answers_of_a_finished_run_of_humaneval_are_compared(edge: FakeEdge, data: Path) -> None:
    await run(data, *THROUGH)
    report = data.parent / "out" / "humaneval_report.json"
    free_at_the_edge(report)
    asked = len(edge.asked)
    found = await swept("--recorded", str(report), "--data", f"humaneval:{data}", "--output", str(data.parent / "new"))
    assert len(edge.asked) == asked, "nothing is asked again"
    assert {path.suffix for path in (data.parent / "new").iterdir()} == {".json", ".md", ".html"}
    assert [chart.name for chart in found.charts] == ["quality_over_computed", "quality_over_billed"]
    for table in found.tables:
        names = [row[0] for row in table.rows]
        assert names == ["random", "token gate", "router, prompt alone", "router and gate"]
    assert "no router looks at 4, 8 tokens" in found.warnings[-1], "the fake edge tells no confidences"


async def test_the_answers_of_a_run_that_goes_on_are_read_from_its_journal(
    edge: FakeEdge, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise ConfigError("interrupted")

    monkeypatch.setattr(experiment, "write", interrupted)
    with pytest.raises(ConfigError, match="interrupted"):
        await run(data, *THROUGH)
    monkeypatch.undo()
    journal = data.parent / "out" / "humaneval_report.unfinished.jsonl"
    found = await swept("--recorded", str(journal), "--data", f"humaneval:{data}", "--output", str(data.parent / "new"))
    assert {name: len(rows) for name, rows in found.rows.items()} == dict.fromkeys(
        ["edge_only", "cloud_only", "lossless", "gated 0.5, 0", "gated 0.9, 0"], 4
    )
    assert found.warnings[-1].startswith("edge only is as good as cloud only")


async def test_answers_to_other_questions_or_without_both_sides_are_refused(edge: FakeEdge, data: Path) -> None:
    await run(data, "--ways", "edge_only,gated")
    report = str(data.parent / "out" / "humaneval_report.json")
    with pytest.raises(ConfigError, match="no answers of cloud_only"):
        await swept("--recorded", report, "--data", f"humaneval:{data}")
    with pytest.raises(ConfigError, match="other questions were asked"):
        await swept("--recorded", report, "--data", f"humaneval:{data}", "--tasks", "0-1")
    with pytest.raises(ConfigError, match="--data is missing"):
        await swept("--recorded", report)
    with pytest.raises(ConfigError, match="not a report"):
        await swept("--recorded", str(data), "--data", f"humaneval:{data}")


async def test_both_sides_and_every_gate_answer_each_question_and_the_edge_tells_its_confidences(
    edge: FakeEdge, tmp_path: Path
) -> None:
    await swept("--questions", "4", "--gates", "0.5", "0.9,0,4", "--output", str(tmp_path))
    names = "mode", "confidence_threshold", "max_draft_tokens", "collaboration"
    wanted = [tuple(body.get(name) for name in names) for body in edge.answers]
    ways = [
        ("edge_only", None, None, {"tokens": True}),
        ("cloud_only", None, None, None),
        (None, 0.5, None, None),
        (None, 0.9, 4, None),
    ]
    assert sorted(map(str, wanted)) == sorted(4 * [*map(str, ways)])


def test_a_bill_has_the_prompt_once_and_nothing_where_no_cloud_was_asked() -> None:
    row = AnswerRow(question=0, repeat=0, prompt_tokens=50, drafted=8, cloud_calls=3)
    gated = msgspec.structs.replace(row, provenance={"edge": 5, "accepted": 6, "recovered": 2})
    assert billed(gated) == 50 + 5 + 8 + 2
    assert billed(msgspec.structs.replace(row, drafted=0, cloud_calls=0, provenance={"edge": 12})) == 0
