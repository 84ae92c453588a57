"""Who may use the console: keys, pages of other origins, browsers without JavaScript."""

from typing import Any

from tests.console.conftest import visit
from tests.console.scripted_edge import KEY, scripted_edge

ASKED = "#key-dialog:visible"


async def test_a_key_is_asked_for_and_kept_in_the_tab_alone(browser: Any) -> None:
    async with scripted_edge(KEY) as edge, visit(browser, edge.url) as page:
        await page.wait_for_selector(ASKED)
        assert "asks for an API key" in await page.inner_text("#key-reason")
        await page.fill("#key", "wrong")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#key-reason:has-text('does not accept')")
        await page.fill("#key", KEY)
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#state[data-state=on]")
        assert await page.is_hidden("#key-dialog")
        await page.fill("#prompt", "Now?")
        await page.keyboard.press("Enter")
        await page.wait_for_selector(".reply[data-state=done]")
        await page.reload()
        await page.wait_for_selector("#state[data-state=on]")
        assert await page.evaluate("localStorage.length + document.cookie.length") == 0
        other = await page.context.new_page()
        await other.goto(edge.url)
        await other.wait_for_selector(ASKED)


async def test_a_key_can_be_forgotten(browser: Any) -> None:
    async with scripted_edge(KEY) as edge, visit(browser, edge.url) as page:
        await page.fill("#key", KEY)
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#state[data-state=on]")
        await page.click("#open-key")
        await page.click("#forget-key")
        await page.wait_for_selector(ASKED)
        assert KEY not in await page.evaluate("JSON.stringify({...sessionStorage})")


async def test_a_question_with_a_wrong_key_is_refused_in_words(browser: Any) -> None:
    async with scripted_edge(KEY) as edge, visit(browser, edge.url) as page:
        await page.wait_for_selector(ASKED)
        await page.keyboard.press("Escape")
        await page.fill("#prompt", "Now?")
        await page.keyboard.press("Enter")
        await page.wait_for_selector(".notice:has-text('give a valid API key')")
        assert edge.asked == []


async def test_a_page_of_another_origin_reads_nothing_and_shows_no_frame(browser: Any) -> None:
    async with scripted_edge() as edge, scripted_edge() as other, visit(browser, other.url, flawless=False) as page:
        await page.route(
            "**/evil", lambda route: route.fulfill(content_type="text/html", body=f"<iframe src='{edge.url}'>")
        )
        await page.goto(other.url + "evil")
        asked = await page.evaluate(
            """async (url) => {
                const headers = { "Content-Type": "application/json" };
                const body = JSON.stringify({ messages: [{ role: "user", content: "x" }], mode: "edge_only" });
                const tries = [
                    fetch(url + "stats"),
                    fetch(url + "v1/chat/completions", { method: "POST", headers, body }),
                    fetch(url + "v1/chat/completions", { method: "POST", body, mode: "no-cors" }),
                ];
                const results = await Promise.allSettled(tries);
                return results.map((result) => result.status === "fulfilled" ? result.value.type : "refused");
            }""",
            edge.url,
        )
        assert asked[:2] == ["refused"] * 2 and asked[2] in ("refused", "opaque")
        assert edge.asked == []
        framed = page.frames[1]
        assert await framed.locator("#prompt").count() == 0


async def test_without_javascript_the_page_says_so(browser: Any) -> None:
    async with scripted_edge() as edge, visit(browser, edge.url, java_script_enabled=False) as page:
        assert "needs JavaScript" in await page.inner_text("noscript")
