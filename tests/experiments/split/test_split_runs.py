"""Small runs of the layer split's experiments by their commands, on their own servers with real engines."""

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest

from common.files.installation import PROJECT
from experiments.report import schema
from experiments.report.schema import ExperimentReport

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
QUESTIONS = 3


async def report(name: str, folder: Path, *flags: str) -> ExperimentReport:
    command = "-m", f"experiments.{name}", "--questions", str(QUESTIONS), "--output", str(folder), *flags
    process = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=PROJECT)
    assert await process.wait() == 0
    found = schema.read(folder / f"{name}.json")
    assert [one.name for one in found.configurations if one.failures or one.answers < QUESTIONS] == []
    return found


def texts(found: ExperimentReport, name: str) -> list[str]:
    """By question; of repeats the first."""
    return [row.text for row in sorted(found.rows[name], key=lambda row: row.question) if row.repeat == 0]


def measured(found: ExperimentReport, name: str, measure: str) -> float:
    return next(one for one in found.configurations if one.name == name).measures[measure].value


async def test_a_naive_split_sends_what_its_formula_says_and_answers_as_the_whole_model_does(tmp_path: Path) -> None:
    found = await report("communication_overhead", tmp_path, "--thresholds", "0.8,1.01")
    sent, formula = (measured(found, "naive_split", name) for name in ("bytes", "naive_context"))
    assert sent == pytest.approx(formula, rel=0.05)
    assert measured(found, "split 0.8", "bytes") < measured(found, "split 1.01", "bytes") < sent
    assert texts(found, "naive_split") == texts(found, "split 1.01") == texts(found, "cloud_only")
    assert measured(found, "split 1.01", "cloud_rate") == 1 > measured(found, "split 0.8", "cloud_rate")


async def test_edge_cloud_and_communication_are_all_the_time_of_an_answer(tmp_path: Path) -> None:
    found = await report("inference_time", tmp_path, "--threshold", "1.01", "--repeats", "1", "--round-trips", "50")
    for one in found.configurations:
        parts = sum(one.measures[name].value for name in ("edge_ms", "cloud_ms", "communication_ms"))
        assert parts == pytest.approx(one.measures["latency_mean_ms"].value)
        assert one.name == "int8" or texts(found, one.name) == texts(found, "cloud_only")
    assert measured(found, "no_fp16", "bytes_up") > 1.5 * measured(found, "split", "bytes_up")
    assert [table.title for table in found.tables if len(table.rows) > 1 and "it holds" in table.title]


async def test_states_in_fp16_change_no_answer_when_no_exit_is_taken(tmp_path: Path) -> None:
    flags = "--kinds", "fp16,fp32", "--clients", "2", "--questions", str(QUESTIONS), "--output", str(tmp_path)
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "experiments.exactness", *flags, cwd=PROJECT)
    assert await process.wait() == 0
    fp16, fp32 = msgspec.json.decode((tmp_path / "exactness.json").read_bytes())
    assert fp16["answers"] == fp32["answers"] == QUESTIONS
    assert fp16["differences"] == fp32["differences"] == []
    assert fp16["bytes_up"] < fp32["bytes_up"]
