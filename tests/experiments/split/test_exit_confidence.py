"""Comparing measures of an exit's confidence: their curves, the learned one's halves, the report, and wrong files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration import data
from calibration.split import records
from calibration.split.records import ExitRecords, RecordedModel
from common.errors import ConfigError
from experiments.harness.statistics import each_once
from experiments.report.document import ReportFiles
from experiments.split import exit_confidence, exit_curves, exit_measures
from experiments.split.exit_measures import MEASURES, NEVER, SEED

MODEL = RecordedModel("tiny", 8, 4096, [2, 4], "", "some", True)


def recorded(questions: int = 80, seed: int = 0) -> ExitRecords:
    """Two exits whose token is right as often as its probability says."""
    chance = np.random.default_rng(seed)
    question = np.repeat(np.arange(questions), 10)
    shape = 2, len(question)
    top = 1 - chance.beta(0.5, 4, shape)
    right = chance.integers(0, 4096, shape[1])
    token = np.where(chance.random(shape) < top, right, right + 1)
    second = (1 - top) * chance.random(shape)
    between = np.vstack([np.zeros(shape[1]), chance.random(shape[1])])
    return ExitRecords(question, right, token, top, second, 8 * (1 - top), between, between)


def curve_of(scores: np.ndarray, found: ExitRecords) -> exit_curves.CurvePoints:
    return exit_curves.curve(scores, found.agrees, found.question).points(each_once(found.questions))


def test_a_curve_goes_from_no_token_of_the_cloud_to_nothing_that_differs() -> None:
    found = recorded()
    for name, measure in MEASURES.items():
        points = curve_of(measure(found, 4096), found)
        assert (points.rate[0, 0], points.rate[0, -1], points.wrong[0, -1]) == (0, 1, 0), name
        assert (np.diff(points.rate) >= 0).all()
    alone = curve_of(found.top[:1], found)
    assert alone.wrong[0, 0] == pytest.approx(1 - found.agrees[0].mean())


def test_who_knows_what_is_right_has_the_least_area_and_who_knows_nothing_half_of_the_errors() -> None:
    found = recorded(400)
    wrong = 1 - found.agrees[0].mean()
    knows = curve_of(found.agrees[:1] + 1e-3 * np.random.default_rng(1).random((1, 4000)), found).area[0]
    nothing = curve_of(np.random.default_rng(1).random((1, 4000)), found).area[0]
    probability = curve_of(found.top[:1], found).area[0]
    assert knows == pytest.approx(wrong**2 / 2, rel=0.02)
    assert nothing == pytest.approx(wrong / 2, rel=0.1)
    assert knows < probability < nothing


def test_what_compares_exits_never_takes_a_token_at_the_first() -> None:
    found = recorded()
    for measure in (exit_measures.overlap, exit_measures.saturation):
        scores = measure(found, 4096)
        assert (scores[0] == NEVER).all() and (scores[1] > NEVER).all()
    assert (found.overlap[0] == 0).all(), "what was recorded stays as it is"


def test_the_learned_measure_of_a_question_does_not_depend_on_its_own_half() -> None:
    found = recorded()
    half, other = data.split(found.questions, 0.5, SEED)
    mine = np.isin(found.question, half)
    changed = replace(found, right=np.where(mine, found.token[0], found.right))
    before, after = (exit_measures.learned(each, 4096) for each in (found, changed))
    assert np.array_equal(before[:, mine], after[:, mine])
    assert not np.array_equal(before[:, ~mine], after[:, ~mine])
    assert set(half) | set(other) == set(range(found.questions))


def test_a_measure_that_sees_more_is_found_clearly_better(tmp_path: Path) -> None:
    """Where the state moves wherever the token is wrong, saturation and classifier see what probabilities do not."""
    found = recorded(200)
    moved = np.vstack([np.zeros(2000), np.where(found.agrees[1], 0.9, 0.2)])
    report = exit_confidence.compare(MODEL, replace(found, saturation=moved), {})
    last = {one.measure: one for one in report.measured if one.exits == "exit 4"}
    for name in ("saturation", "learned"):
        difference = last[name].to_base
        assert difference is not None and difference.clear and difference.value < 0
    assert last["max_prob"].to_base is None
    first = {one.measure for one in report.measured if one.exits == "exit 2"}
    assert first == set(MEASURES) - {"overlap", "saturation"}


def test_a_recording_is_read_as_it_was_written_and_its_report_names_every_measure(tmp_path: Path) -> None:
    path = tmp_path / "exits.npz"
    records.write(path, MODEL, recorded())
    model, found = records.read(path)
    assert model == MODEL and np.array_equal(found.entropy, recorded().entropy)
    exit_confidence.run(path, ReportFiles.at(tmp_path, "report"), {"program": "-m x"})
    assert {each.suffix for each in tmp_path.iterdir()} == {".npz", ".json", ".md", ".html", ".svg"}
    for name in ("report.md", "report.html", "exit_confidence.svg"):
        assert all(measure in (tmp_path / name).read_text() for measure in MEASURES)


def test_a_file_that_is_no_recording_is_refused_by_name(tmp_path: Path) -> None:
    good, path = recorded(), tmp_path / "exits.npz"
    with pytest.raises(ConfigError, match=r"exits\.npz: No such file"):
        records.read(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="not a recording"):
        records.read(path)
    for changes in ({"top": good.top[:, 1:]}, {"entropy": good.entropy * np.nan}, {"token": good.token[:1]}):
        records.write(path, MODEL, replace(good, **changes))
        with pytest.raises(ConfigError, match="not a recording"):
            records.read(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(ConfigError, match="not a recording"):
        records.read(path)
