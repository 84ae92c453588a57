"""Numbers, sentences and the command line of a report."""

import copy

import pytest

from experiments.report.particulars import command
from experiments.report.schema import Difference, ExperimentReport, Measure, MeasureInfo
from experiments.report.words import Figures, all_figures, summary
from tests.support.reports.fake_report import fake_report


@pytest.fixture(scope="module")
def whole() -> ExperimentReport:
    return fake_report(questions=30)


@pytest.fixture
def report(whole: ExperimentReport) -> ExperimentReport:
    return copy.deepcopy(whole)


def test_the_summary_says_what_each_part_contributes_and_what_changes_nothing(report: ExperimentReport) -> None:
    report.configurations[4].unchanged = True
    texts = {sentence.lead: sentence.text for sentence in summary(report)}
    points = {sentence.lead: sentence.points for sentence in summary(report)}
    first = report.contributions[0]
    written = all_figures(report)[first.measure]
    (point, *_) = points[first.feature]
    assert point in str(next(sentence for sentence in summary(report) if sentence.lead == first.feature))
    assert f"{written.number(first.baseline)} → {written.number(first.without)}" in point
    assert written.change(first.difference) in point
    assert texts["no_http_optimizations"] == "no measure differs clearly from baseline."
    assert texts["no_draft_verify"] == "2 of 60 were not answered; the first: 502: the cloud cannot be reached"
    assert any("highest quality" in lead for lead in texts)


def test_a_difference_that_is_not_clear_is_not_called_better_or_worse() -> None:
    for better, sign, reading in (
        ("higher", 1, "better"), ("higher", -1, "worse"), ("lower", 1, "worse"), ("lower", -1, "better"),
        ("neither", 1, "differs"),
    ):  # fmt: skip
        written = Figures(MeasureInfo("m", "", better, False), 2)  # type: ignore[arg-type]
        assert written.reading(Difference(sign, sign - 0.5, sign + 0.5, clear=True)) == reading
        assert written.reading(Difference(sign, sign - 1.5, sign + 1.5, clear=False)) == "no clear difference"


def test_numbers_of_a_measure_have_the_same_decimals_and_no_negative_zero(report: ExperimentReport) -> None:
    for written in all_figures(report).values():
        lengths = {
            len(written.number(value).partition(".")[2]) for value in (0.0, 1.0, 123.456, -0.0001, 1234567.1, -98765.4)
        }
        assert len(lengths) == 1
        assert "−" not in written.number(-1e-9)
        assert written.number(1234567).startswith("1\u202f234\u202f567")


@pytest.mark.parametrize(
    ("values", "number"),
    [
        ([0.0, 1.0], "1.000"),
        ([0.5, 0.9], "0.500"),
        ([30, 4], "30.0"),
        ([3, 400], "3"),
        ([4e5], "400\u202f000"),
        ([0.0021], "0.0021"),
    ],
)
def test_digits_are_those_of_the_largest_value(values: list[float], number: str, report: ExperimentReport) -> None:
    report.measures = {"m": MeasureInfo("m", "", "higher", False)}
    for one in report.configurations:
        one.measures = {}
    for one, value in zip(report.configurations, values, strict=False):
        one.measures = {"m": Measure(value, value, value)}
    assert all_figures(report)["m"].number(next(filter(None, values))) == number


def test_the_command_repeats_the_experiment(report: ExperimentReport) -> None:
    report.options = {"only": "a,b", "resume": False, "config": None, "set": ["x=1", "y=a b"], "sweep": True}
    assert command(report.options) == "python ablation_experiments.py --only a,b --set x=1 --set 'y=a b' --sweep"
