"""Calibrating from the command line: the errors for wrong input, and a whole small run on the real engines."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from calibration import data as calibration_data
from calibration.calibrate import CalibrationRequest, calibrate
from calibration.humaneval import HumanEvalTask
from calibration.report import CalibratedConfig
from calibration.target import CalibrationTarget
from cli.terminal import console
from common import config
from common.decoding.policy import default_plan
from common.errors import ConfigError
from common.http_client import EdgeCloudHTTPClient
from models import heldout
from tests.conftest import Servers
from tests.end_to_end.test_programs import run

GOOD = json.dumps({"prompt": "What is AI?", "answer": "It is."})


@pytest.mark.parametrize(
    ("flags", "lines", "message"),
    [
        ("", [GOOD], "needs one of --target-quality, --target-cloud-rate, --max-risk"),
        ("--target-quality 0.9 --max-risk 0.1", [GOOD], "needs one of"),
        ("--target-quality 1.5", [GOOD], r"--target-quality must be above 0 and below 1, not 1\.5"),
        ("--target-quality nan", [GOOD], "--target-quality must be above 0"),
        ("--target-cloud-rate=-0.1", [GOOD], "--target-cloud-rate must be above 0"),
        ("--max-risk 0.05 --confidence 95", [GOOD], "--confidence must be above 0 and below 1, not 95"),
        ("--target-speed 0.3", [GOOD], "unrecognized arguments: --target-speed"),
        ("--max-risk much", [GOOD], "--max-risk: invalid float value"),
        ("--max-risk 0.05", [GOOD] * 10, r"10 questions are too few; --max-risk 0\.05 needs at least 236"),
        ("--target-quality 0.98", [GOOD] * 10, r"needs at least 300"),
        ("--max-risk 0.05", [GOOD, "", '{"prompt": 3}'], r"data\.jsonl, line 3: .*Expected `str`, got `int`"),
        ("--max-risk 0.05", [GOOD, "{"], r"line 2: .*truncated"),
        ("--max-risk 0.05", [GOOD, '{"answer": "x"}'], r"line 2: .*missing required field `prompt`"),
        ("--max-risk 0.05", [GOOD, '{"prompt": " "}'], r"line 2: the prompt is empty"),
        ("--max-risk 0.05", ['{"prompt": "x", "metric": "beauty"}'], r"line 1: .*'beauty'"),
        ("--max-risk 0.05 --set edge.confidence.strategy=mood", [GOOD], r"edge\.confidence\.strategy: .*'mood'"),
        ("--max-risk 0.05 --set edge.confidence.threshold=1.2", [GOOD], r"edge\.confidence\.threshold: "),
        ("--target-cloud-rate 0.3 --output {folder}", [GOOD] * 60, "is a folder"),
        ("--target-cloud-rate 0.3 --output nowhere/x.yaml", [GOOD] * 60, "nowhere/x.yaml: no such folder"),
        ("--target-cloud-rate 0.3 --output config/config.yaml", [GOOD] * 60, "is the config that is read"),
        ("--target-cloud-rate 0.3 --split", [GOOD] * 60, r"edge\.split\.manifest: set it"),
        ("--max-risk 0.05 --split", [GOOD] * 10, "10 questions are too few"),
        ("--target-cloud-rate 0.3 --split --router x.json", [GOOD] * 60, "--router: is of mode route"),
        ("--target-cloud-rate 0.3", [GOOD] * 60, r"cannot reach http://127\.0\.0\.1:1"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_written(
    flags: str, lines: list[str], message: str, tmp_path: Path
) -> None:
    data, output = tmp_path / "data.jsonl", tmp_path / "calibrated.yaml"
    data.write_text("\n".join(lines))
    words = ["--data", str(data), "--output", str(output), "--set", "communication.edge_endpoint=http://127.0.0.1:1"]
    code, _, errors = run("main.py", "--mode", "calibrate", *words, *flags.format(folder=tmp_path).split())
    said = [line for line in errors.splitlines() if "error: " in line]
    assert code != 0
    assert len(said) == 1 and re.search(message, said[0]), errors
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize(("name", "message"), [("nowhere.jsonl", "No such file"), (".", "Is a directory")])
def test_a_data_file_that_cannot_be_read_is_named(name: str, message: str) -> None:
    code, _, errors = run("main.py", "--mode", "calibrate", "--max-risk", "0.05", "--data", name)
    assert code == 1
    assert errors.strip() == f"error: {Path(name)}: {message}{' or directory' if 'No' in message else ''}"


def test_a_stricter_target_needs_more_questions() -> None:
    assert (
        CalibrationTarget("--max-risk", 0.01, 0.99).questions_needed
        > CalibrationTarget("--max-risk", 0.01, 0.9).questions_needed
    )
    assert (
        CalibrationTarget("--target-quality", 0.99, 0.95).questions_needed
        > CalibrationTarget("--target-quality", 0.9, 0.95).questions_needed
    )


def small_data() -> tuple[Path, Path]:
    """A few held-out questions of each kind, and a config file that exists already."""
    rows = [{"prompt": prompt, "answer": answer} for _, prompt, answer in heldout.pairs(per_kind=4)]
    data, output = Path("data.jsonl"), Path("calibrated.yaml")
    data.write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    output.write_text("the old one")
    return data, output


def written_report() -> Any:
    return json.loads(Path("logs/calibration/calibrated.json").read_text())


async def test_a_small_calibration_on_the_real_engines_measures_what_it_simulated(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data, output = small_data()
    async with EdgeCloudHTTPClient(servers.edge_url, servers.cloud_url) as client:
        target = CalibrationTarget("--target-cloud-rate", 0.3, 0.95)
        request = CalibrationRequest(target, data, CalibratedConfig(output, None), max_tokens=64)
        await calibrate(client, config.load(environment={}), request, console())
    said = capsys.readouterr().out
    assert "replaced calibrated.yaml" in said and "written logs/calibration/calibrated.json" in said

    report = written_report()
    figures = report["figures"]
    assert report["fitted_on"] + report["measured_on"] == len(calibration_data.read(data))
    assert abs(figures["cloud_rate"]["fitted"] - 0.3) <= 0.03
    for name in ("cloud_rate", "cloud_work", "calls_per_token"):
        assert abs(figures[name]["measured"] - figures[name]["expected"]) < 0.05
    assert figures["quality"]["measured"] >= figures["quality"]["expected"] - 0.03, "simulated quality is a lower bound"
    assert 0 < figures["cloud_rate"]["measured"] < 1
    assert {"token", "product", "both", "any_length"} == set(report["curves"])

    chosen = config.load(output, environment={})
    assert default_plan(chosen).gate.threshold == report["config"]["edge.confidence.threshold"]
    assert chosen.inference.max_draft_tokens == report["config"]["inference.max_draft_tokens"]
    assert chosen.experiments == config.load(environment={}).experiments


def test_the_written_config_has_what_differs_from_the_defaults_and_what_was_changed(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("edge: {server: {port: 8080, host: far}, model: {path: x.gguf}}\nlogging: {level: INFO}")
    tree = config.with_changes(base, {"edge.confidence.threshold": 0.8, "inference.max_draft_tokens": 2})
    assert tree == {
        "edge": {"server": {"host": "far"}, "model": {"path": "x.gguf"}, "confidence": {"threshold": 0.8}},
        "inference": {"max_draft_tokens": 2},
    }
    assert yaml.safe_load(yaml.safe_dump(tree)) == tree
    with pytest.raises(ConfigError, match="No such file"):
        config.with_changes(tmp_path / "nowhere.yaml", {})


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from calibration.calibrate import fit_gate, simulate
    from calibration.fit import agreement
    from calibration.plot import draw
    from calibration.result import CalibrationResult, curves, figures
    from tests.calibration.test_fit import BASE, traffic

    traces, held_out = traffic(40, seed=0), traffic(40, seed=1)
    fitted = fit_gate(traces, BASE, CalibrationTarget("--target-cloud-rate", 0.4, 0.95), console())
    measured = simulate(held_out, [fitted.plan])[0]
    lines = curves(fitted, lambda plans: simulate(held_out, plans))
    result = CalibrationResult(fitted, measured, measured, lines, agreement(held_out))
    assert draw(result, figures(result)).startswith(b"\x89PNG")


def test_tasks_of_humaneval_are_asked_as_the_experiment_asks_them(tmp_path: Path) -> None:
    row = {
        "task_id": "HumanEval/7",
        "prompt": "def one():\n",
        "entry_point": "one",
        "canonical_solution": "    return 1\n",
        "test": "",
    }
    (tmp_path / "mixed.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, (row, {"prompt": "def one():"}))))
    task, plain = calibration_data.read(tmp_path / "mixed.jsonl")
    assert task == calibration_data.CalibrationQuestion(msgspec.convert(row, HumanEvalTask).request)
    assert plain == calibration_data.CalibrationQuestion("def one():")
