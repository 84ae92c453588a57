"""The live view: what it shows, and that it asks the edge only while somebody looks."""

import asyncio
from typing import Any

from benchmarks import console_cost
from common.config_schema import PricesConfig
from common.types import Collaboration, Draft, Provenance, Verdict
from edge.metrics import AnswerMetrics
from edge.savings import Savings
from tests.console.scripted_edge import ScriptedEdge


def answered(metrics: AnswerMetrics | None, **tokens: int) -> None:
    assert metrics is not None
    counts = {str(source): tokens.get(source, 0) for source in Provenance}
    metrics.record_answer(Collaboration(tokens=counts, drafted=20, accepted=15, rounds=4))


async def figures(page: Any) -> dict[str, str]:
    rows = await page.eval_on_selector_all(
        "#figures div", "all => all.map(row => [...row.children].map(c => c.textContent))"
    )
    return dict(rows)


async def test_it_shows_the_counters_since_the_start(page: Any, edge: ScriptedEdge) -> None:
    answered(edge.metrics, edge=60, accepted=15, recovered=20, bonus=5)
    await page.goto(edge.url + "#live")
    await page.wait_for_selector("#figures div")
    shown = await figures(page)
    assert shown["Answers"] == "1" and shown["Tokens"] == "100" and shown["By the cloud"] == "25 %"
    assert shown["Drafts accepted"] == shown["KV hits"] == "75 %" and shown["Waiting"] == "2"
    assert shown["Sequences in use"] == "1 of 4" and shown["Rounds per answer"] == "4.0"
    assert "recovered 20 · 20 %" in await page.inner_text("#sources-list")
    assert await page.eval_on_selector_all("#sources-bar .part", "all => all.length") == 4


async def test_it_shows_the_state_of_each_cloud(page: Any, edge: ScriptedEdge) -> None:
    edge.breaker, edge.last_error = "open", "cannot be reached <b>now</b>"
    await page.goto(edge.url + "#live")
    row = await page.inner_text("#clouds tr")
    assert row.split("\t") == [
        *("http://cloud.example:8081", "lost", "42 ms", "7", "0", "2", "1", "1.5 kB / 2.5 MB"),
        "cannot be reached <b>now</b>",
    ]


async def test_without_prices_it_shows_the_work_that_was_saved_and_with_them_the_money(
    page: Any, edge: ScriptedEdge
) -> None:
    def saved() -> None:
        tokens = {str(source): 0 for source in Provenance} | {"edge": 900, "accepted": 60, "recovered": 40}
        edge.savings.record(Collaboration(tokens=tokens, drafted=100, accepted=60, cloud_steps=40, cloud_calls=4), 1000)

    saved()
    await page.goto(edge.url + "#live")
    await page.wait_for_selector("#savings tr")
    rows = (await page.inner_text("#savings")).split("\n")
    assert [row.split("\t") for row in rows] == [
        [since, "1", "1,000", "960 · 96 %", "40", "1,100"] for since in ("Since midnight", "Since the start")
    ]
    assert await page.is_visible("#no-prices")
    edge.savings = Savings(PricesConfig(prompt=1.0, completion=2.0))
    saved()
    await page.wait_for_selector("#savings td:has-text('0.00182 of 0.003')")  # 1100 read, 40 written, not 1000 and 1000
    assert not await page.is_visible("#no-prices") and await page.is_visible("th.priced")


async def test_it_shows_what_the_policy_would_choose_and_why(page: Any, edge: ScriptedEdge) -> None:
    await page.goto(edge.url + "#live")
    await page.wait_for_selector("#policy tr")
    assert "Rounds\tnothing is measured yet, and they teach most" in await page.inner_text("#policy tr:nth-child(2)")
    assert "Round trip not measured" in await page.inner_text("#policy-figures")
    assert await page.get_attribute("#acceptance li:first-child", "title") == "not measured"
    draft = Draft([1, 2], [0.9, 0.9], [0.9, 0.9], False, 10.0)
    for rounds_before in range(60):
        verdict = Verdict([1, 2, 3], 2, None, 40.0, cloud_ms=5.0)
        edge.estimates.observe_round(draft, verdict, 100, rounds_before)
    answered(edge.metrics, edge=1)
    await page.wait_for_selector("#policy tr:nth-child(2):has-text('it promises the most tokens a second')")
    assert "Round trip 35 ms" in await page.inner_text("#policy-figures")
    assert "0 in rounds, 0 continuous, 1 by the edge alone" in await page.inner_text("#policy-figures")
    shares = await page.eval_on_selector_all("#acceptance li", "all => all.slice(0, 3).map(one => one.title)")
    assert shares == ["99 %", "99 %", "not measured"]


async def test_plots_are_drawn_from_what_happened_between_two_looks(page: Any, edge: ScriptedEdge) -> None:
    await page.goto(edge.url + "#live")
    await page.wait_for_selector("#figures div")
    answered(edge.metrics, edge=30, cloud=30)
    await page.wait_for_selector("figure:nth-child(2) .now:has-text('50 %')")
    assert await page.locator("#plots canvas").count() == 4


async def test_the_benchmark_of_what_pages_cost_asks_what_a_page_asks(page: Any, edge: ScriptedEdge) -> None:
    asked = list[str]()
    page.on("request", lambda request: asked.append(request.url.removeprefix(edge.url.rstrip("/"))))
    await page.goto(edge.url + "#live")
    await page.wait_for_selector("#figures div")
    asked.clear()  # what the page asked when it was opened
    async with asyncio.timeout(60):
        while len(asked) < len(console_cost.LOOK):
            await asyncio.sleep(0.1)
    assert set(asked) == set(console_cost.LOOK)


async def test_a_page_that_shows_no_figures_does_not_ask_for_them(page: Any, edge: ScriptedEdge) -> None:
    await page.goto(edge.url + "#live")
    await page.wait_for_selector("#figures div")
    await page.goto(edge.url + "#chat")
    await asyncio.sleep(0.2)  # a poll that was under way
    polled = edge.polled
    await asyncio.sleep(6)
    assert edge.polled == polled


async def test_a_lost_edge_is_said_and_its_return_noticed(page: Any, edge: ScriptedEdge) -> None:
    await page.goto(edge.url + "#live")
    await page.wait_for_selector("#figures div")
    await page.route("**/stats", lambda route: route.abort())
    await page.wait_for_selector("#live-fault:has-text('cannot be reached')")
    await page.unroute("**/stats")
    await page.wait_for_selector("#live-fault", state="hidden")
