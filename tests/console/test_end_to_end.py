"""The console on the real demo pair: what it shows of an answer is what the edge reports."""

from typing import Any

from common.types import Provenance
from tests.conftest import Servers
from tests.console.conftest import visit

QUESTION = "What is an operating system?"


async def test_a_lossless_answer_and_its_comparison_on_the_real_pair(browser: Any, servers: Servers) -> None:
    async with visit(browser, servers.edge_url) as page:
        await page.wait_for_selector("#state[data-state=on]")
        await page.select_option("#setting-mode", "lossless")
        await page.fill("#setting-temperature", "0")
        await page.fill("#prompt", QUESTION)
        await page.keyboard.press("Enter")
        await page.wait_for_selector(".reply[data-state=done]")
        shown = await page.inner_text(".answer")
        legend = await page.eval_on_selector_all(".legend li", "all => all.map(item => item.textContent.split(' '))")
        counts = {source: int(count) for source, count in legend}
        assert set(counts) <= {str(source) for source in Provenance} - {"edge"} and counts["accepted"] > 0
        await page.locator(".answer .token.accepted").first.hover()
        assert "round\n1" in await page.inner_text("#token-card")

        await page.evaluate("location.hash = 'compare'")
        await page.fill("#compare-prompt", QUESTION)
        await page.click("#compare-send")
        await page.wait_for_selector("#compare-send:visible")
        answers = await page.eval_on_selector_all(".column .answer", "all => all.map(one => one.innerText)")
        assert answers[2] == answers[3] == shown, "lossless is what the cloud answers alone"
        said = await page.locator(".column:nth-child(3) .difference").inner_text()
        assert said == "The cloud's answer, word for word."
        assert await page.locator(".column:last-child .token.cloud").count() > 5

        await page.evaluate("location.hash = 'live'")
        await page.wait_for_selector("#clouds tr:has-text('in use')")
        assert await page.inner_text("#figures div:first-child dd") >= "5"
