"""Reports as Markdown, HTML and comparison: they are complete, no text is markup, nothing is fetched."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from experiments.report import html
from experiments.report.particulars import changes, command
from experiments.report.schema import Chart, Curve, ExperimentReport, Measure, MeasureInfo, ReportTable
from experiments.report.words import all_figures
from tests.support.reports.browser import BROWSER, browser
from tests.support.reports.fake_report import KINDS, fake_report
from tests.support.reports.report_pages import RENDERERS, Parsed


@pytest.fixture(scope="module")
def whole() -> ExperimentReport:
    return fake_report(questions=30)


@pytest.fixture
def report(whole: ExperimentReport) -> ExperimentReport:
    return copy.deepcopy(whole)


# -- what is in it


def test_the_page_has_every_plot_for_phone_and_desk_and_every_mark_in_words(report: ExperimentReport) -> None:
    page = Parsed(html.render(report))
    figures = [attributes.get("id") for tag, attributes in page.tags if tag == "figure"]
    assert figures == ["trade", "contributions", "latencies", "provenance"]
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) == 2 * 3 + len(report.contributions)
    assert all(each["role"] == "img" and each["aria-label"] for each in drawings)
    assert len(page.of_class("mark")) == len(page.of_class("distribution")) == 2 * len(report.configurations)
    segments = sum(count > 0 for one in report.configurations for count in one.provenance.values())
    for class_, marks in (("mark", 2 * 7), ("distribution", 2 * 7), ("kind", 2 * segments + len(KINDS))):
        assert len(page.of_class(class_)) == marks
    titles = [tag for tag, _ in page.tags].count("title")
    assert titles == 1 + 2 * 7 + 2 * 7 + 2 * segments, "the page's own, and one for each mark"


@pytest.mark.parametrize("render", RENDERERS[:2])
def test_every_measure_of_every_configuration_is_there_with_its_difference(
    render: Callable[[ExperimentReport], str], report: ExperimentReport
) -> None:
    text = Parsed(render(report)).text
    measured = all_figures(report)
    for one in report.configurations:
        assert one.name in text
        for name, measure in one.measures.items():
            written = measured[name]
            assert written.number(measure.value) in text
            assert written.interval(measure.low, measure.high) in text
            if name in one.differences:
                assert written.change(one.differences[name]) in text
        for change in changes(report, one):
            assert str(change) in text
    for value in (report.environment.git_commit, report.environment.cpu, report.workload.prompts_sha256):
        assert value and value in text
    assert "502: the cloud cannot be reached" in text
    assert command(report.options) in text
    assert "use_confidence_check: true\n" in text, "the config"


def test_the_same_report_makes_the_same_page(report: ExperimentReport) -> None:
    for render in RENDERERS:
        assert render(report) == render(copy.deepcopy(report))


def test_a_report_of_other_configurations_and_measures_is_drawn_too(report: ExperimentReport) -> None:
    """A sweep has no parts, many configurations, and other measures than those that the plots need."""
    kept = [report.configurations[n % 7] for n in range(40)]
    report.configurations = [msgspec.structs.replace(one, name=f"threshold {n}") for n, one in enumerate(kept)]
    report.baseline, report.contributions, report.rows = "threshold 0", [], {}
    assert len(Parsed(html.render(report)).of_class("mark")) == 2 * 40
    for one in report.configurations:
        one.measures = {"joules": Measure(3.5, 3.0, 4.0)}
        one.differences, one.provenance, one.latencies_ms = {}, {}, []
    report.measures = {"joules": MeasureInfo("Energy", "J", "lower", False)}
    for render in RENDERERS:
        page = Parsed(render(report))
        assert "Energy" in page.text
        assert "svg" not in [tag for tag, _ in page.tags]


def test_a_report_without_any_answer_is_drawn_too(report: ExperimentReport) -> None:
    for one in report.configurations:
        one.measures, one.differences, one.provenance, one.latencies_ms = {}, {}, {}, []
        one.answers, one.failures, one.first_failure = 0, 60, "the server died"
    report.contributions, report.warnings = [], ["nothing was answered"]
    for render in RENDERERS[:2]:
        text = Parsed(render(report)).text
        assert "the server died" in text
        assert "nothing was answered" in text


# -- what is not in it


HOSTILE = "<script>alert(1)</script> | `x` \"y' --> </style> "
HOSTILE += "![a](https://a.b/c.png) <img src=https://a.b/c> &lt; *b* _i_ \n# h"


def hostile(value: object) -> object:
    """The same value with every text made hostile, including the keys of mappings."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, dict):
        return {f"{key}{HOSTILE}": hostile(one) for key, one in value.items()}
    if isinstance(value, list):
        return [hostile(one) for one in value]
    return value


def made_hostile(report: ExperimentReport) -> ExperimentReport:
    report.title, report.baseline = report.title + HOSTILE, report.baseline + HOSTILE
    report.environment = msgspec.convert(
        {key: hostile(one) for key, one in msgspec.to_builtins(report.environment).items()}, type(report.environment)
    )
    report.workload = msgspec.structs.replace(report.workload, name=HOSTILE, metric=HOSTILE, prompts_sha256=HOSTILE)
    report.options, report.config = {"data": HOSTILE}, hostile(report.config)  # type: ignore[assignment]
    report.network = {HOSTILE: 1.0}
    report.warnings = [HOSTILE]
    report.measures = {
        name: msgspec.structs.replace(info, title=info.title + HOSTILE, unit=HOSTILE)
        for name, info in report.measures.items()
    }
    for one in report.configurations:
        one.name += HOSTILE
        one.description = one.first_failure = HOSTILE
        one.failures = 3
        one.config_overrides = hostile(one.config_overrides)  # type: ignore[assignment]
        one.provenance = {HOSTILE: 4, "edge": 1}
    report.contributions = [
        msgspec.structs.replace(one, feature=HOSTILE, configuration=one.configuration + HOSTILE)
        for one in report.contributions
    ]
    report.rows = {
        HOSTILE: [msgspec.structs.replace(row, error=HOSTILE) for rows in report.rows.values() for row in rows[:1]]
    }
    return report


@pytest.mark.parametrize("render", RENDERERS)
def test_no_text_of_a_report_is_markup(render: Callable[[ExperimentReport], str], report: ExperimentReport) -> None:
    tame = Parsed(render(report))
    page = render(made_hostile(report))
    found = Parsed(page)
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in tame.tags} | {"figcaption", "section", "ul", "li"}
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "img", "a", "em"})
    assert page.count("</style>") == page.count("<style>")
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert found.text.count("<script>alert(1)</script>") > 20, "all texts are shown literally"


@pytest.mark.parametrize("render", [RENDERERS[0], RENDERERS[2]])
def test_nothing_is_fetched(render: Callable[[ExperimentReport], str], report: ExperimentReport) -> None:
    page = render(report)
    fetched = [
        value
        for tag, attributes in Parsed(page).tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "poster", "action", "xlink:href")
    ]
    assert fetched == ["data:,"]
    assert not re.search(r"https?://|@import|url\(|<script", page)


def test_tables_and_charts_of_an_experiment_are_shown_and_are_never_markup(report: ExperimentReport) -> None:
    odd = "<b>|odd|</b> & `x` *y*"
    spread = [Measure(value, value - 0.1, value + 0.2) for value in (0.3, 0.5)]
    report.findings = [f"finding {odd}"]
    report.tables = [ReportTable(title=odd, note=f"note {odd}", heads=["", odd], rows=[["first", odd]])]
    report.charts = [
        Chart(
            name="sweep", title=odd, note=odd, x="threshold", y="share", level=0.4,
            curves=[Curve(name=odd, x=[0.5, 0.8], y=spread), Curve(name="alone", x=[0.5], y=spread[:1])],
        )
    ]  # fmt: skip
    for render in RENDERERS[:2]:
        page = Parsed(render(report))
        assert "b" not in {tag for tag, _ in page.tags} or render is RENDERERS[0]
        for text in (f"finding {odd}", f"note {odd}", odd):
            assert text in page.text
    page = Parsed(html.render(report))
    assert "0.5 [0.4, 0.7]" in page.text, "the curve is also a table"
    assert len(page.of_class("through")) == 4, "a line and the level, in both widths"
    assert len(page.of_class("line-0")) == 3, "and the line in the legend"


# -- in a browser


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
async def test_a_browser_reports_no_errors_and_nothing_is_wider_than_the_screen(
    report: ExperimentReport, tmp_path: Path
) -> None:
    files = {"report": html.render(report), "compared": RENDERERS[2](report)}
    async with browser(tmp_path / "profile") as page:
        for name, text in files.items():
            file = tmp_path / f"{name}.html"
            file.write_text(text)
            for width in (400, 1400):
                for dark in (False, True):
                    await page.open(file.as_uri(), width, dark)
                    await page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
                    assert await page.evaluate("document.documentElement.scrollWidth") == width
                    drawn = "[...document.querySelectorAll('svg')].filter(each => each.clientHeight > 20).length"
                    expected = 3 + len(report.contributions) if name == "report" else 0
                    assert await page.evaluate(drawn) == expected
                    colour = await page.evaluate("getComputedStyle(document.body).backgroundColor")
                    assert (sum(map(int, re.findall(r"\d+", colour))) < 300) == dark
        assert page.complaints == []
        assert all(address.startswith("file://") or address == "data:," for address in page.requests)
        (tmp_path / "broken.html").write_text("<!DOCTYPE html><script>missing()</script>")
        await page.open((tmp_path / "broken.html").as_uri(), 400, dark=False)
        assert len(page.complaints) == 1, "it would have complained"
