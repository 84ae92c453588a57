"""The report of a sweep: curves, areas and sentences as HTML and Markdown, and the geometry of lines."""

import copy
import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from experiments.report import document, html, markdown, schema
from experiments.report.schema import Curves, ExperimentReport, Measure, Series, SweepDescription
from tests.support.reports.browser import BROWSER, browser
from tests.support.reports.fake_report import SETUPS, fake_report


@pytest.fixture(scope="module")
def swept() -> ExperimentReport:
    report = fake_report(questions=20)
    points = [name for name in SETUPS if not name.endswith("_only")]
    report.sweep = SweepDescription(
        parameter="Threshold",
        series=[
            Series(name="one", configurations=points[:3], at=[0.1, 0.5, 0.9]),
            Series(name="two", configurations=points[3:], at=[0.5, 0.99]),
        ],
        ends=["edge_only", "cloud_only"],
        plots=[Curves(x="cloud_rate", y="quality"), Curves(y="quality"), Curves(y="joules")],
        areas=[
            schema.Area(
                series=name, measure="quality", area=Measure(0.8, 0.7, 0.9),
                to_line=schema.Difference(0.1, 0.05, 0.2, clear=True),
                to_best=None if name == "one" else schema.Difference(-0.02, -0.1, 0.1, clear=False),
            )
            for name in ("one", "two")
        ],
    )  # fmt: skip
    return report


def test_the_page_of_a_sweep_has_curves_instead_of_a_plot_of_all_configurations(swept: ExperimentReport) -> None:
    page = html.render(swept)
    assert page.count("<svg") == 2 * 2 + len(swept.contributions), "what was not measured is not drawn"
    for width in ("narrow", "wide"):
        drawn = re.findall(rf'<div class="{width}">(<svg.*?</svg>)', page)
        assert [one.count('class="curve ') for one in drawn] == [4, 4]
        assert [one.count("<circle") // 2 for one in drawn] == [3 + 2 + 2 + 2 + 2, 5]
        assert [one.count("<title>") for one in drawn] == [11, 7], "every mark in words; levels too"
    assert 'id="trade"' not in page and 'id="latencies"' not in page
    assert "0.800 [0.700,\u00a00.900]" in page


def test_the_markdown_of_a_sweep_has_every_point_and_the_areas(swept: ExperimentReport) -> None:
    text = markdown.render(swept)
    assert "## Quality at equal cloud rate" in text
    assert "| one | 0.9 |" in text and "| two | 0.99 |" in text
    assert "the best" in text
    assert "Best quality at equal cloud rate" in text and "no other is clearly lower" in text


def test_a_sweep_is_read_back_as_it_was_written(swept: ExperimentReport, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    document.write_json(swept, file)
    assert schema.read(file) == swept
    assert schema.read(file).schema_version == schema.SCHEMA_VERSION


def test_names_of_series_are_never_markup(swept: ExperimentReport) -> None:
    hostile = copy.deepcopy(swept)
    assert hostile.sweep is not None
    hostile.sweep.series[0] = replace(hostile.sweep.series[0], name="<script>alert(1)</script>|*b*")
    assert "<script>" not in html.render(hostile)
    assert "<script>" not in markdown.render(hostile)


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
async def test_a_browser_draws_all_curves_without_errors(swept: ExperimentReport, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(html.render(swept))
    async with browser(tmp_path / "profile") as page:
        for width in (400, 1400):
            await page.open(file.as_uri(), width, dark=width == 400)
            await page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
            assert await page.evaluate("document.documentElement.scrollWidth") == width
            drawn = "[...document.querySelectorAll('.curves svg')].filter(each => each.clientHeight > 20).length"
            assert await page.evaluate(drawn) == 2
            colours = "new Set([...document.querySelectorAll('.through')].map(e => getComputedStyle(e).stroke)).size"
            assert await page.evaluate(colours) == 3, "one for each line, one for the ends"
        assert page.complaints == []
