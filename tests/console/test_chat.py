"""The chat: answers with their provenance, stopping, editing, answering again, exporting."""

import asyncio
import json
from typing import Any

import pytest

from common.types import Provenance
from tests.console.conftest import Ask
from tests.console.scripted_edge import ScriptedEdge, ScriptedPiece

LAST = ".turn:last-child"


async def test_an_answer_shows_each_token_by_its_provenance(page: Any, ask: Ask) -> None:
    await ask("Who answers?")
    assert await page.inner_text(f"{LAST} .answer") == "Edge and cloud answer together."
    tokens = await page.eval_on_selector_all(
        f"{LAST} .answer .token", "all => all.map(t => [t.textContent, t.className])"
    )
    assert tokens == [
        ["Edge and", "token edge"],
        [" cloud", "token accepted"],
        [" answer", "token recovered"],
        [" together", "token bonus"],
        [".", "token cloud"],
    ]
    legend = await page.eval_on_selector_all(f"{LAST} .legend li", "all => all.map(item => item.textContent)")
    assert legend == ["edge 1", "accepted 1", "recovered 1", "bonus 1", "cloud 1"]


async def test_provenance_does_not_rest_on_colour_alone(page: Any, ask: Ask) -> None:
    await ask()
    lines = await page.eval_on_selector_all(
        f"{LAST} .answer .token",
        "all => all.map(t => getComputedStyle(t)).map(s => s.textDecorationLine + ' ' + s.textDecorationStyle)",
    )
    assert len(set(lines)) == len(Provenance)


async def test_pointing_at_a_token_explains_it(page: Any, ask: Ask) -> None:
    await ask()
    await page.hover(f"{LAST} .token.accepted")
    card = await page.inner_text("#token-card")
    assert "accepted" in card and "drafted by the edge" in card and "70 %" in card


async def test_alternatives_are_asked_for_and_shown_where_the_edge_answers_alone(
    page: Any, ask: Ask, edge: ScriptedEdge
) -> None:
    await page.select_option("#setting-mode", "edge")
    await page.check("#setting-alternatives")
    await ask()
    assert edge.asked[0]["logprobs"] is True and edge.asked[0]["top_logprobs"] == 5
    await page.hover(f"{LAST} .token.edge")
    assert "other\n8 %" in await page.inner_text("#token-card")
    await page.select_option("#setting-mode", "cloud")
    await ask()
    assert "logprobs" not in edge.asked[1], "only the edge's own answers have them"


async def test_the_arrow_keys_explain_tokens_too(page: Any, ask: Ask) -> None:
    await ask()
    await page.focus(f"{LAST} .answer")
    for expected in ("edge", "accepted", "recovered"):
        await page.keyboard.press("ArrowRight")
        await page.wait_for_function(
            "word => document.getElementById('token-card').innerText.startsWith(word)", arg=expected
        )
    await page.keyboard.press("Escape")
    assert await page.is_hidden("#token-card")


async def test_the_whole_chat_works_by_keyboard(page: Any, edge: ScriptedEdge) -> None:
    await page.keyboard.type("From the keyboard")
    await page.keyboard.press("Enter")
    await page.wait_for_selector(f"{LAST} .reply[data-state=done]")
    assert edge.asked[0]["messages"][-1]["content"] == "From the keyboard"
    labels = set[str]()
    for _ in range(30):
        await page.keyboard.press("Tab")
        labels.add(await page.evaluate("document.activeElement.textContent.trim() || document.activeElement.id"))
    assert {"Chat", "Compare", "Live", "Key", "Settings", "Edit", "Copy", "Regenerate", "New chat", "Export"} <= labels


async def test_stopping_keeps_what_arrived_and_frees_the_edge_at_once(page: Any, ask: Ask, edge: ScriptedEdge) -> None:
    edge.pieces, edge.pause = [ScriptedPiece(f"word{n} ") for n in range(1000)], 0.05
    await ask(wait=False)
    await page.wait_for_selector(".answer:has-text('word3')")
    await page.click("#stop")
    await page.wait_for_selector(f"{LAST} .reply[data-state=stopped]")
    async with asyncio.timeout(60):
        while not edge.left:
            await asyncio.sleep(0.02)
    assert "word3" in await page.inner_text(f"{LAST} .answer")
    assert await page.is_visible("#send")


async def test_regenerating_asks_the_same_again_and_replaces_the_answer(
    page: Any, ask: Ask, edge: ScriptedEdge
) -> None:
    await ask("Again?")
    edge.pieces = [ScriptedPiece("Another one.")]
    await page.click(f"{LAST} button:text('Regenerate')")
    await page.wait_for_selector(f"{LAST} .answer:has-text('Another one.')")
    assert edge.asked[0]["messages"] == edge.asked[1]["messages"]
    assert await page.locator(".turn").count() == 2


async def test_editing_a_question_drops_what_followed_it(page: Any, ask: Ask, edge: ScriptedEdge) -> None:
    await ask("First")
    await ask("Second")
    await page.click(".turn:nth-child(1) button:text('Edit')")
    assert await page.locator(".turn").count() == 0
    assert await page.input_value("#prompt") == "First"
    await ask("First, better")
    assert edge.asked[-1]["messages"] == [{"role": "user", "content": "First, better"}]


async def test_a_conversation_is_sent_whole(page: Any, ask: Ask, edge: ScriptedEdge) -> None:
    await ask("First")
    await ask("Second")
    assert [message["role"] for message in edge.asked[-1]["messages"]] == ["user", "assistant", "user"]
    assert edge.asked[-1]["messages"][1]["content"] == "Edge and cloud answer together."


async def test_an_export_holds_the_tokens_and_the_report(page: Any, ask: Ask) -> None:
    await ask("For the record")
    async with page.expect_download() as saving:
        await page.click("#export")
    saved = json.loads((await (await saving.value).path()).read_text())
    question, answer = saved["turns"]
    assert question["content"] == "For the record"
    assert [token["source"] for token in answer["answer"]["tokens"]] == [p.value for p in Provenance]
    assert answer["answer"]["report"]["bytes_up"] == 1234


@pytest.mark.parametrize(
    ("mode", "sent"),
    [
        ("gated", {"mode": "collaborative", "use_confidence_check": True, "confidence_threshold": 0.6}),
        ("lossless", {"mode": "collaborative", "use_confidence_check": False, "objective": "cost"}),
        ("edge", {"mode": "edge_only", "privacy": "edge_only"}),
        ("cloud", {"mode": "cloud_only", "seed": 7}),
        ("route", {"mode": "route", "route_threshold": 0.3}),
    ],
)
async def test_settings_become_fields_of_the_request(
    page: Any, ask: Ask, edge: ScriptedEdge, mode: str, sent: dict[str, Any]
) -> None:
    await page.select_option("#setting-mode", mode)
    for name, value in sent.items():
        if name == "objective":
            await page.select_option("#setting-objective", value)
        elif name == "privacy":
            await page.check("#setting-privacy")
        elif name not in ("mode", "use_confidence_check"):
            await page.fill(f"#setting-{name}", str(value))
    await page.fill("#setting-system", "Be brief.")
    await ask()
    assert sent.items() <= edge.asked[0].items()
    assert edge.asked[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "confidence_threshold" not in edge.asked[0] or mode == "gated", "it has no effect in this mode"


async def test_a_cloud_lost_in_mid_answer_is_said_and_the_answer_goes_on(
    page: Any, ask: Ask, edge: ScriptedEdge
) -> None:
    edge.degraded = "cannot reach http://cloud.example"
    await ask()
    assert await page.inner_text(f"{LAST} .notice") == "The edge went on alone: cannot reach http://cloud.example"
    assert await page.inner_text(f"{LAST} .answer") == "Edge and cloud answer together."
    await page.wait_for_selector("#state[data-state=lost]")
    edge.degraded = None
    await ask("Back?")
    await page.wait_for_selector("#state[data-state=on]")


@pytest.mark.parametrize(
    ("fault", "said"), [("breaks_after", "connection broke"), ("fails_after", "engine has stopped")]
)
async def test_a_broken_answer_keeps_its_text_and_says_why(
    page: Any, ask: Ask, edge: ScriptedEdge, fault: str, said: str
) -> None:
    edge.pause = 0.05
    setattr(edge, fault, 2)
    await ask()
    assert said in await page.inner_text(f"{LAST} .notice")
    assert await page.inner_text(f"{LAST} .answer") == "Edge and cloud"
    setattr(edge, fault, None)
    await ask("Next")
    assert await page.get_attribute(f"{LAST} .reply", "data-state") == "done"


async def test_thoughts_and_tool_calls_are_folded(page: Any, ask: Ask, edge: ScriptedEdge) -> None:
    call = {"index": 0, "function": {"name": "weather", "arguments": '{"city":'}}
    rest = {"index": 0, "function": {"arguments": '"Paris"}'}}
    edge.deltas = [
        {"reasoning_content": "Let me "},
        {"reasoning_content": "think."},
        {"tool_calls": [call]},
        {"tool_calls": [rest]},
    ]
    await ask()
    assert await page.is_hidden(f"{LAST} .thoughts p")
    await page.click(f"{LAST} .thoughts summary")
    assert await page.inner_text(f"{LAST} .thoughts p") == "Let me think."
    await page.click(f"{LAST} .call summary")
    assert await page.inner_text(f"{LAST} .call") == 'Tool call: weather\n{"city":"Paris"}'


async def test_a_character_of_several_tokens_belongs_to_them(page: Any, ask: Ask, edge: ScriptedEdge) -> None:
    edge.pieces = [
        ScriptedPiece("", Provenance.ACCEPTED, tokens=["\ufffd"]),
        ScriptedPiece("🎈 up", Provenance.EDGE, tokens=["\ufffd", " up"]),
        ScriptedPiece(" ç", Provenance.CLOUD, tokens=[" \ufffd", "\ufffd"]),
    ]
    await ask()
    tokens = await page.eval_on_selector_all(
        f"{LAST} .answer .token", "all => all.map(t => [t.textContent, t.className])"
    )
    assert tokens == [["🎈", "token accepted"], [" up", "token edge"], [" ç", "token cloud"]]
