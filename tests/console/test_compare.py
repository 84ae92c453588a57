"""Comparing: one prompt in four modes at once, what differs from the cloud's answer, and a cloud lost meanwhile."""

import asyncio
from typing import Any

from common.types import Provenance
from tests.console.scripted_edge import ScriptedEdge, ScriptedPiece, mode_of

SAME = [
    ScriptedPiece("Water"),
    ScriptedPiece(" boils"),
    ScriptedPiece(" at"),
    ScriptedPiece(" 100"),
    ScriptedPiece(" degrees."),
]


async def compare(page: Any, edge: ScriptedEdge, wait: bool = True) -> None:
    await page.goto(edge.url + "#compare")
    await page.fill("#compare-prompt", "When does water boil?")
    await page.click("#compare-send")
    if wait:
        await page.wait_for_selector("#compare-send:visible")


async def test_all_modes_answer_at_once_with_figures_below(page: Any, edge: ScriptedEdge) -> None:
    edge.by_mode["cloud_only"] = [piece._replace(source=Provenance.CLOUD) for piece in SAME]
    edge.pieces, edge.holds = SAME, True
    await compare(page, edge, wait=False)
    async with asyncio.timeout(60):
        while len(edge.asked) < 4:
            await asyncio.sleep(0.01)
    assert edge.left == 0 and await page.locator(".column .reply[data-state=running]").count() == 4
    edge.go_on.set()
    await page.wait_for_selector("#compare-send:visible")
    assert sorted(map(mode_of, edge.asked)) == ["cloud_only", "edge_only", "gated", "lossless"]
    assert {body["temperature"] for body in edge.asked} == {0}
    figures = await page.inner_text(".column:last-child .compared")
    assert "5 of 5" in figures and "1.2 kB up, 99 B down" in figures and " ms" in figures
    assert "0 of 5" in await page.inner_text(".column:first-child .compared")


async def test_words_that_differ_from_the_cloud_are_marked(page: Any, edge: ScriptedEdge) -> None:
    edge.pieces = SAME
    edge.by_mode["edge_only"] = [*SAME[:3], ScriptedPiece(" 90"), ScriptedPiece(" degrees"), ScriptedPiece(" Celsius.")]
    await compare(page, edge)
    marked = await page.eval_on_selector_all(
        ".column:first-child .token.differs", "all => all.map(one => one.textContent.trim())"
    )
    assert marked == ["90", "Celsius."]
    assert await page.inner_text(".column:first-child .difference") == "2 words differ from the cloud's answer."
    assert await page.inner_text(".column:nth-child(2) .difference") == "The cloud's answer, word for word."


async def test_nothing_is_compared_with_a_cloud_that_was_lost_meanwhile(page: Any, edge: ScriptedEdge) -> None:
    edge.degraded = "cannot reach http://cloud.example"
    await compare(page, edge)
    assert await page.locator(".notice:visible").count() == 4
    assert await page.locator(".difference:visible").count() == 0
    assert "Edge and cloud answer together." in await page.inner_text(".column:first-child .answer")


async def test_stopping_ends_all_of_them(page: Any, edge: ScriptedEdge) -> None:
    edge.pieces, edge.pause = SAME * 100, 0.05
    await compare(page, edge, wait=False)
    await page.wait_for_selector(".column:last-child .token")
    await page.click("#compare-stop")
    async with asyncio.timeout(60):
        while edge.left < 4:
            await asyncio.sleep(0.02)
    assert await page.locator(".column .reply[data-state=stopped]").count() == 4
