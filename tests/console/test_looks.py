"""What everybody can use: no serious fault that axe-core finds, a phone's width, the dark, a chat of 30,000 tokens."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from common.types import Provenance
from tests.console.conftest import Ask, visit
from tests.console.scripted_edge import ScriptedEdge, ScriptedPiece

LAST = ".turn:last-child"
RIGHT_EDGE = "all => Math.max(...all.map(one => one.getBoundingClientRect().right))"
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
RICH = [
    ScriptedPiece("# Title\n\nSome **bold** text, `code` and [a link](https://example.org).\n\n"),
    *(ScriptedPiece(f"- {source} item\n", source) for source in Provenance),
    ScriptedPiece("\n| a | b |\n|---|---|\n| 1 | 2 |\n\n> quoted\n\n"),
    ScriptedPiece("```python\nprint('a long line of code that is wider than the screen of a phone')\n```\n"),
]


@pytest_asyncio.fixture(loop_scope="session", params=["light", "dark", "phone", "dark phone"])
async def shown(request: pytest.FixtureRequest, browser: Any, edge: ScriptedEdge) -> AsyncIterator[Any]:
    """The console after an answer with everything that Markdown has."""
    edge.pieces = RICH
    edge.deltas = [{"reasoning_content": "Hm."}]
    options = PHONE if "phone" in request.param else {}
    scheme = "dark" if "dark" in request.param else "light"
    async with visit(browser, edge.url, color_scheme=scheme, **options) as page:
        await page.fill("#prompt", "Everything?")
        await page.keyboard.press("Enter")
        await page.wait_for_selector(".reply[data-state=done]")
        yield page


async def test_axe_finds_no_serious_fault(shown: Any, edge: ScriptedEdge) -> None:
    axe = pytest.importorskip("axe_playwright_python.async_playwright", reason="run `make test-console`").Axe()
    faults = {}

    async def check(view: str) -> None:
        report = (await axe.run(shown)).response
        for fault in report["violations"]:
            if fault["impact"] in ("serious", "critical"):
                faults[view, fault["id"]] = [node["html"][:120] for node in fault["nodes"]]

    await check("chat")
    if await shown.is_hidden("#settings"):
        await shown.click("#open-settings")
        await check("settings")
        await shown.keyboard.press("Escape")
    await shown.click("#open-key")
    await check("key")
    await shown.click("#cancel-key")
    await shown.goto(edge.url + "#compare")
    await shown.fill("#compare-prompt", "Everything?")
    await shown.click("#compare-send")
    await shown.wait_for_selector("#compare-send:visible")
    await check("compare")
    await shown.goto(edge.url + "#live")
    await shown.wait_for_selector("#figures div")
    await check("live")
    assert faults == {}


async def test_nothing_is_wider_than_the_screen(shown: Any, edge: ScriptedEdge) -> None:
    for view in ("chat", "compare", "live"):
        await shown.goto(edge.url + f"#{view}")
        if view == "live":
            await shown.wait_for_selector("#clouds tr")
        widest = await shown.eval_on_selector_all("main:not([hidden]) *:not(.wide *, pre *)", RIGHT_EDGE)
        assert widest <= shown.viewport_size["width"], view
        assert await shown.evaluate("innerHeight") == shown.viewport_size["height"], (
            "a page that is too wide is shown smaller"
        )


async def test_the_page_follows_the_systems_colours(browser: Any, edge: ScriptedEdge) -> None:
    papers = []
    for scheme in ("light", "dark"):
        async with visit(browser, edge.url, color_scheme=scheme) as page:
            papers.append(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
    light, dark = (sum(map(int, paper[4:-1].split(","))) for paper in papers)
    assert light > 3 * 200 > 3 * 60 > dark


PICTURES = """async () => {
    const gaps = [];
    let last = performance.now();
    const watch = (now) => {
        gaps.push(now - last);
        last = now;
        requestAnimationFrame(watch);
    };
    requestAnimationFrame(watch);
    for (let step = 0; step < 20; step++) {
        document.getElementById("scroller").scrollTop = step * 1000;
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
    return gaps.length;
}"""


async def test_a_chat_of_thirty_thousand_tokens_stays_usable(page: Any, ask: Ask, edge: ScriptedEdge) -> None:
    kinds, portions = list(Provenance), []
    for first in range(0, 30_000, 100):
        words = [f" word{n}" + (".\n\n" if n % 50 == 49 else "") for n in range(first, first + 100)]
        portions.append(ScriptedPiece("".join(words), kinds[first // 100 % len(kinds)], tokens=words))
    edge.pieces = portions
    await ask("A book, please")
    assert await page.locator(".answer .token").count() == 30_000
    assert "word29999" in await page.inner_text(".answer")
    assert await page.evaluate(PICTURES) >= 5, "pictures while scrolling through it"
    edge.pieces = [ScriptedPiece("Short.")]
    await ask("And now?")
    assert await page.inner_text(f"{LAST} .answer") == "Short."
    assert len(edge.asked[-1]["messages"][1]["content"]) == sum(len(portion.text) for portion in portions)
