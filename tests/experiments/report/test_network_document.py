"""The pages and plots of a network sweep show all of its report. No servers."""

import re
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from experiments.network import tables
from experiments.network.answer_modes import DEFAULT_MODES
from experiments.network.document import PLOTS, of_sweep
from experiments.network.passes import Block, Pass, PassResult, SweepPlan, passes
from experiments.network.report import report
from experiments.report import html, markdown, panel_grid
from experiments.report.document import Document
from tests.support.reports.browser import BROWSER, browser
from tests.support.reports.fake_sweep import PLAN, block, pass_result, sweep_report


def test_the_pages_have_a_panel_for_each_bandwidth_and_number_of_clients_and_all_figures() -> None:
    found = sweep_report([pass_result(one) for one in passes(PLAN)])
    page = html.render_document(of_sweep(found))
    panels = len(PLAN.uplinks) * len(PLAN.clients)
    assert page.count("<svg") == panels * len(PLOTS)
    assert page.count("<script") == 0 and "http://" not in page
    for text in (unescape(page), markdown.render_document(of_sweep(found))):
        assert tables.conclusion(found) in text
        assert found.environment.cpu in text
        assert "python -m experiments.network_sweep --round-trips 0,50 --uplinks 10 --clients 1,4 " in text
        for row in found.rows:
            assert f"{row.over_cloud_only.value:.2f}" in text
    for so_far in (sweep_report([pass_result(next(passes(PLAN)))]), sweep_report([])):
        assert html.render_document(of_sweep(so_far)).count("<svg") == (3 if so_far.rows else 0)
        assert markdown.render_document(of_sweep(so_far))


def test_the_markdown_names_the_plot_files_which_show_all_panels_and_the_legend(tmp_path: Path) -> None:
    found = of_sweep(sweep_report([pass_result(one) for one in passes(PLAN)]))
    text = markdown.render_document(found)
    for grid in found.grids:
        file = panel_grid.write(grid, tmp_path)
        assert f"]({file.name})" in text
        root = ElementTree.parse(file).getroot()
        words = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
        assert words > {grid.title, "rounds", "lossless, by policy", *(panel.title for panel in grid.panels)}
        assert all(str(drawing) in file.read_text() for _, drawing in grid.drawings), "each plot is drawn once"
        assert float(root.attrib["width"]) > 2 * panel_grid.WIDTH


def test_the_panels_of_a_plot_have_common_axes_and_its_limits_lie_within_them() -> None:
    speed = of_sweep(sweep_report([pass_result(one) for one in passes(PLAN)])).grids[0]
    ticks = [re.findall(r'class="tick"[^>]*>([^<]+)<', drawing) for _, drawing in speed.drawings]
    assert ticks[0] and all(one == ticks[0] for one in ticks)
    for _, drawing in speed.drawings:
        limits = re.findall(r'<path d="M([^"]+)" class="limit"', drawing)
        assert len(limits) == len(PLAN.ways) - 2, "of every mode in it"
        heights = [float(point.partition(",")[2]) for path in limits for point in path.split(" L")]
        assert min(heights) >= 0 and max(heights) <= panel_grid.HEIGHT


def test_api_keys_are_not_in_the_pages() -> None:
    plan = msgspec.structs.replace(PLAN, settings=["edge.server.api_keys=[secret]"])
    found = of_sweep(report(plan, [], 0, token_ends=lambda text: []))
    assert "secret" not in html.render_document(found) + markdown.render_document(found)


@pytest.fixture(scope="module")
def large() -> Document:
    """A sweep of the default modes over nine panels."""
    modes = [name for name in DEFAULT_MODES.split(",") if name != "cloud"]
    plan = SweepPlan(round_trips=[0, 14, 50, 100], uplinks=[10, 20, 80], clients=[1, 4, 16], ways=["cloud", *modes],
                     prompts=8, repeats=1, max_tokens=9, seed=0)  # fmt: skip
    entries = [PassResult(one, [large_block(n, way, one) for n, way in enumerate(plan.ways)]) for one in passes(plan)]
    return of_sweep(report(plan, entries, len(entries), token_ends=lambda text: [1, 3, 5]))


def large_block(number: int, way: str, one: Pass) -> Block:
    seconds = (1 + one.cell.clients / 4) / (1 + number) + one.cell.round_trip / 100 * (way not in ("edge", "auto"))
    told = {"rounds": 2, "drafted": 8, "accepted": 6, "edge_latency_ms": 20} if number > 2 else {}
    return block(way, one, seconds, **told)


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
async def test_a_browser_draws_every_panel_and_nothing_is_wider_than_the_screen(
    large: Document, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    file.write_text(html.render_document(large))
    async with browser(tmp_path / "profile") as page:
        for width, columns in ((400, 1), (1400, 3)):
            await page.open(file.as_uri(), width, dark=width == 400)
            await page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
            assert await page.evaluate("document.documentElement.scrollWidth") == width
            lefts = "[...document.querySelectorAll('#speed svg')].map(each => each.getBoundingClientRect().left)"
            places = await page.evaluate(lefts)
            assert len(places) == 9 and len(set(places)) == columns, "a column for each number of clients"
            colours = (
                "new Set([...document.querySelectorAll('#bytes .legend i')].map(e => getComputedStyle(e).background))"
            )
            assert await page.evaluate(f"{colours}.size") == 9, "no two modes look the same in the legend"
        drawn = set()
        for dark in (False, True):
            await page.open(panel_grid.write(large.grids[0], tmp_path).as_uri(), 1400, dark)
            colour = "getComputedStyle(document.querySelector('.sheet')).fill"
            assert await page.evaluate(colour) != "rgb(0, 0, 0)", "the file brings its own style"
            drawn.add(await page.screenshot())
        assert len(drawn) == 2, "and follows the colour scheme"
        assert page.complaints == []
