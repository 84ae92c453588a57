"""Calls that a cloud's model writes: read from the verified tokens, the same in every mode, streamed and not."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from benchmarks import fake_cloud
from benchmarks.fake_cloud import serving
from benchmarks.toy_model import END, verify
from common.http.client import HTTPClient
from tests.edge.tool_calls.test_api import CLOCK, WEATHER, calls_of
from tests.support.edge_in_process import edge_of

MODES = {
    "cloud only": {"mode": "cloud_only"},
    "rounds": {"use_confidence_check": False, "way": "rounds"},
    "continuous": {"use_confidence_check": False, "way": "continuous"},
}
FIRST = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
SECOND = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "place": "inside"}}\n</tool_call>'
CALLS = [("clock", {}), ("get_weather", {"city": "Rome", "place": "inside"})]
ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Weather?"}],
    "tools": [CLOCK, WEATHER],
    "temperature": 0,
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge() -> AsyncIterator[HTTPClient]:
    async with serving() as fake, edge_of(fake.url) as made:
        yield made


Write = Callable[[str], Any]


@pytest.fixture
def writes(edge: HTTPClient, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Makes the cloud's model answer with a text."""

    async def write(text: str) -> None:
        asked = {"prompt": text, "add_special_tokens": False}
        script = [*(await edge.post("/tokenize", asked, dict))["tokens"], END]
        begins = list[int]()

        def model(token_ids: Sequence[int]) -> int:
            begins.append(len(token_ids))
            return int(script[len(token_ids) - min(begins)])

        monkeypatch.setattr(fake_cloud, "cloud_model", model)
        monkeypatch.setattr(fake_cloud, "verify", partial(verify, model=model))

    return write


async def answer(edge: HTTPClient, fields: dict[str, Any]) -> dict[str, Any]:
    """The whole answer, which is the same as its stream's deltas joined."""
    whole: dict[str, Any] = await edge.post("/v1/chat/completions", ASK | fields, dict)
    return whole


async def joined(edge: HTTPClient, fields: dict[str, Any]) -> tuple[str, list[Any], str]:
    """Text, calls and finish reason of a stream."""
    events = edge.events("/v1/chat/completions", ASK | {"stream": True} | fields)
    choices = [choice async for event in events for choice in json.loads(event)["choices"]]
    deltas = [choice["delta"] for choice in choices]
    calls = [call for one in deltas for call in one.get("tool_calls", [])]
    assert [call["index"] for call in calls] == list(range(len(calls)))
    named = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
    return "".join(one.get("content", "") for one in deltas), named, choices[-1]["finish_reason"]


@pytest.mark.parametrize("fields", MODES.values(), ids=MODES)
async def test_a_call_is_the_clouds_very_call(edge: HTTPClient, writes: Write, fields: dict[str, Any]) -> None:
    await writes(f"I look.\n{FIRST}\n{SECOND}")
    whole = await answer(edge, fields)
    assert whole["choices"][0]["message"]["content"] == "I look."
    assert (calls_of(whole), whole["choices"][0]["finish_reason"]) == (CALLS, "tool_calls")
    assert len({call["id"] for call in whole["choices"][0]["message"]["tool_calls"]}) == 2
    assert await joined(edge, fields) == ("I look.", CALLS, "tool_calls")


@pytest.mark.parametrize("fields", MODES.values(), ids=MODES)
async def test_without_parallel_calls_the_answer_ends_with_its_first(
    edge: HTTPClient, writes: Write, fields: dict[str, Any]
) -> None:
    await writes(f"{FIRST}\n{SECOND}")
    whole = await answer(edge, fields | {"parallel_tool_calls": False})
    assert (calls_of(whole), whole["choices"][0]["finish_reason"]) == (CALLS[:1], "tool_calls")
    both = await answer(edge, fields)
    assert whole["usage"]["completion_tokens"] < both["usage"]["completion_tokens"]
    assert await joined(edge, fields | {"parallel_tool_calls": False}) == ("", CALLS[:1], "tool_calls")


@pytest.mark.parametrize("fields", MODES.values(), ids=MODES)
async def test_a_malformed_call_is_text_in_every_mode(edge: HTTPClient, writes: Write, fields: dict[str, Any]) -> None:
    text = '<tool_call>\n{"name": "clock", "arguments": {}\n</tool_call>'
    await writes(text)
    choice = (await answer(edge, fields))["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
    assert "tool_calls" not in choice["message"]
    assert await joined(edge, fields) == (text, [], "stop")


async def test_without_tools_nothing_is_taken_for_a_call(edge: HTTPClient, writes: Write) -> None:
    await writes(FIRST)
    for fields in ({"tools": None}, {"tool_choice": "none"}):
        choice = (await answer(edge, MODES["cloud only"] | fields))["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (FIRST, "stop")
