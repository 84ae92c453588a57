"""Nothing that a prompt, an answer, a tool call or a model's name says is ever executed, loaded or shown as HTML."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.console.conftest import Ask, visit
from tests.console.scripted_edge import ScriptedEdge, ScriptedPiece

HOSTILE = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "<svg onload='window.hit = 1'></svg>",
    "<iframe srcdoc='<script>parent.hit = 1</script>'></iframe>",
    "<style>body { display: none }</style>",
    "<form action='https://evil.example'><button>Send</button></form>",
    "[a link](javascript:window.hit=1)",
    "[a link](data:text/html,<script>parent.hit=1</script>)",
    "<a href='javascript:window.hit=1'>a link</a>",
    "![an image](https://evil.example/secret.png)",
    "```html\n<script>window.hit = 1</script>\n```",
    "`<b onmouseover='window.hit=1'>code</b>`",
    "| <img src=x onerror='window.hit=1'> |\n|---|\n| <script>window.hit=1</script> |",
    "&lt;script&gt;window.hit = 1&lt;/script&gt; &#60;b&#62;",
    "<https://evil.example\"onmouseover='window.hit=1'>",
]
ALLOWED = {"P", "PRE", "CODE", "DIV", "SPAN", "BUTTON", "A", "TABLE", "TR", "TH", "TD", "UL", "OL", "LI", "BLOCKQUOTE"}


async def unharmed(page: Any, edge: ScriptedEdge, where: str) -> None:
    assert await page.evaluate("window.hit") is None
    tags = set(await page.eval_on_selector_all(f"{where} *", "all => all.map(one => one.tagName)"))
    assert tags <= ALLOWED
    links = await page.eval_on_selector_all(f"{where} a", "all => all.map(one => [one.protocol, one.rel, one.target])")
    assert all(link == ["https:", "noopener noreferrer", "_blank"] for link in links)
    names = set(await page.eval_on_selector_all(f"{where} *", "all => all.flatMap(one => one.getAttributeNames())"))
    assert not {name for name in names if name.startswith("on")} | names & {"style", "src", "srcdoc", "action"}


@pytest.mark.parametrize("text", HOSTILE)
async def test_markup_in_an_answer_stays_text(page: Any, ask: Ask, edge: ScriptedEdge, text: str) -> None:
    loaded = []
    page.on("request", lambda request: loaded.append(request.url))
    edge.pieces = [ScriptedPiece(f"{text}\n\n"), *map(ScriptedPiece, text)]
    await ask()
    await unharmed(page, edge, ".answer")
    assert [url for url in loaded if not url.startswith(edge.url)] == []


async def test_markup_in_a_prompt_stays_text(page: Any, ask: Ask, edge: ScriptedEdge) -> None:
    everything = "\n".join(HOSTILE)
    await ask(everything)
    assert await page.inner_text(".question") == everything
    assert await page.locator(".question *").count() == 0
    await page.goto(edge.url + "#compare")
    await page.fill("#compare-prompt", everything)
    await page.click("#compare-send")
    await page.wait_for_selector(".column .reply[data-state=done]")
    await unharmed(page, edge, "#columns .answer")


async def test_markup_in_thoughts_tool_calls_errors_and_model_names_stays_text(
    page: Any, ask: Ask, edge: ScriptedEdge
) -> None:
    hostile = "".join(HOSTILE[:4])
    edge.deltas = [
        {"reasoning_content": hostile},
        {"tool_calls": [{"index": 0, "function": {"name": hostile, "arguments": hostile}}]},
    ]
    edge.model = edge.degraded = hostile
    await ask()
    assert (await page.inner_text("#state")).startswith(hostile)
    assert await page.text_content(".thoughts p") == await page.text_content(".call code") == hostile
    assert await page.inner_text(".notice:visible") == f"The edge went on alone: {hostile}"
    assert await page.evaluate("window.hit") is None
    assert await page.locator(".reply :is(script, img, svg, iframe), #state *").count() == 0


@pytest_asyncio.fixture(loop_scope="session")
async def tried(browser: Any, edge: ScriptedEdge) -> AsyncIterator[Any]:
    """A page that may report what its policy has refused."""
    async with visit(browser, edge.url, flawless=False) as made:
        yield made


async def test_the_browser_itself_refuses_html_from_strings_and_code_from_elsewhere(tried: Any) -> None:
    refused = await tried.evaluate(
        """() => {
            const attempts = [
                () => { document.body.innerHTML = "<b>x</b>"; },
                () => document.body.insertAdjacentHTML("beforeend", "<b>x</b>"),
                () => { document.createElement("script").text = "window.hit = 1"; },
            ];
            const outcome = (attempt) => { try { attempt(); return "done"; } catch (error) { return error.name; } };
            return attempts.map(outcome);
        }"""
    )
    assert refused == ["TypeError"] * 3


async def test_no_other_origin_can_be_asked(tried: Any) -> None:
    blocked = await tried.evaluate(
        """() => new Promise((resolve) => {
            document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
            fetch("http://127.0.0.1:1/").catch(() => {});
        })"""
    )
    assert blocked == "connect-src"
