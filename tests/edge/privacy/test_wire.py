"""What a cloud gets of a request with private words, read from the wire, and that the answer has them again."""

import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from benchmarks import fake_cloud, toy_model
from benchmarks.fake_cloud import FakeCloud
from common.http.client import HTTPClient
from tests.edge.privacy.wire import PLAIN, RecordingProxy, recorded
from tests.support.edge_in_process import edge_of
from tests.support.gguf_copies import with_fill_in

EMAIL, NUMBER = "alice.smith@example.com", "123-45-6789"
PARTS = EMAIL, NUMBER, "alice", "45-6789"
"""Of the words; not as short as what may be in the name of a session by chance."""
FOUND = [r"(?P<EMAIL>[\w.]+@[\w.]+\w)", r"\b\d{3}-\d{2}-\d{4}\b"]
PATTERNS = f"inference.private_patterns={json.dumps(FOUND)}"
REDACT = "inference.private_action=redact"
QUESTION = f"I am {EMAIL}, my number is {NUMBER}."
ANSWER = "Write to <EMAIL_1>, call <PRIVATE_1> or <EMAIL_2>."
RESTORED = f"Write to {EMAIL}, call {NUMBER} or <EMAIL_2>."
CALL = '<tool_call>\n{"name": "mail", "arguments": {"to": ["<EMAIL_1>"]}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"to": {"type": "array"}}}
TOOL = {"type": "function", "function": {"name": "mail", "description": f"Not to {EMAIL}", "parameters": SCHEMA}}

CHAT = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 60}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": QUESTION, "max_tokens": 60},
    "/v1/responses": {"input": QUESTION, "instructions": f"{EMAIL} asks.", "max_output_tokens": 60},
    "/v1/messages": CHAT | {"system": f"{EMAIL} asks."},
    "/infill": {"input_prefix": QUESTION, "input_suffix": f" {EMAIL}", "n_predict": 60, "stop": ["\n"]},
}
MODES: dict[str, dict[str, Any]] = {
    "gated": {"confidence_threshold": 1.0, "product_threshold": 1.0},
    "rounds": {"use_confidence_check": False, "way": "rounds"},
    "continuous": {"use_confidence_check": False, "way": "continuous"},
    "generated": {"use_draft_verify": False, "confidence_threshold": 1.0},
    "cloud_only": {"mode": "cloud_only"},
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def wire(fake: FakeCloud) -> AsyncIterator[RecordingProxy]:
    async with recorded(fake.url) as proxy:
        yield proxy


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge(wire: RecordingProxy, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HTTPClient]:
    file = with_fill_in(tmp_path_factory.mktemp("infill") / "fills-in.gguf")
    async with edge_of(wire.url, PATTERNS, REDACT, PLAIN, f"edge.model.path={file}") as made:
        yield made


async def ids_of(edge: HTTPClient, text: str) -> list[int]:
    body = {"prompt": text, "add_special_tokens": False}
    return list((await edge.post("/tokenize", body, dict))["tokens"])


async def answers(monkeypatch: pytest.MonkeyPatch, edge: HTTPClient, text: str) -> None:
    """Makes the fake cloud answer everything with `text`."""
    script = [*await ids_of(edge, text), toy_model.END]

    def model(context: Sequence[int]) -> int:
        said = next(n for n in range(len(script) - 1, -1, -1) if list(context[len(context) - n :]) == script[:n])
        return script[said]

    monkeypatch.setattr(fake_cloud, "cloud_model", model)
    monkeypatch.setattr(fake_cloud, "verify", partial(toy_model.verify, model=model))


def said_in(path: str, event: dict[str, Any]) -> str:
    """The text of the answer in one event of a stream."""
    if path == "/infill":
        return str(event["content"])
    if path == "/v1/responses":
        return str(event["delta"]) if event["type"] == "response.output_text.delta" else ""
    if path == "/v1/messages":
        return str(event["delta"]["text"]) if event["type"] == "content_block_delta" else ""
    return "".join(str(one.get("text") or one.get("delta", {}).get("content") or "") for one in event["choices"])


async def answer_of(edge: HTTPClient, path: str, body: dict[str, Any], stream: bool) -> str:
    if not stream:
        return json.dumps(await edge.post(path, body, dict))
    events = [data async for data in edge.events(path, body | {"stream": True})]
    return "".join(said_in(path, json.loads(data)) for data in events if data != b"[DONE]")


async def went_up(edge: HTTPClient, wire: RecordingProxy) -> str:
    """All that went up as text; token ids as what they stand for, one list after the other."""
    ids = [token for each in wire.lists() for token in each]
    assert ids, "a prompt has gone up"
    return wire.texts() + (await edge.post("/detokenize", {"tokens": ids}, dict))["prompt"]


CASES = [
    *(("/v1/chat/completions", mode) for mode in MODES),
    *((path, mode) for path in list(BODIES)[1:] for mode in ("gated", "cloud_only")),
]


@pytest.mark.parametrize(("path", "mode"), CASES)
async def test_private_words_are_nowhere_on_the_wire_and_in_the_answer_again(
    edge: HTTPClient, wire: RecordingProxy, monkeypatch: pytest.MonkeyPatch, path: str, mode: str
) -> None:
    await answers(monkeypatch, edge, ANSWER)
    for stream in (False, True):
        wire.clear()
        said = await answer_of(edge, path, BODIES[path] | {"temperature": 0} | MODES[mode], stream)
        sent = await went_up(edge, wire)
        assert "I am <EMAIL_1>, my number is <PRIVATE_1>." in sent
        assert not any(word in sent for word in PARTS)
        assert RESTORED in said and "<EMAIL_1>" not in said


async def test_without_protection_the_same_words_are_found_on_the_wire(fake: FakeCloud) -> None:
    async with recorded(fake.url) as wire, edge_of(wire.url, REDACT, PLAIN) as open_edge:
        for fields in MODES.values():
            wire.clear()
            await open_edge.post("/v1/chat/completions", CHAT | {"max_tokens": 4} | fields, dict)
            sent = await went_up(open_edge, wire)
            assert EMAIL in sent and NUMBER in sent


@pytest.mark.parametrize("mode", ["rounds", "cloud_only"])
async def test_the_arguments_of_calls_and_the_texts_of_tools_are_part_of_it(
    edge: HTTPClient, wire: RecordingProxy, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    await answers(monkeypatch, edge, CALL)
    wire.clear()
    called = {"function": {"name": "mail", "arguments": json.dumps({"to": EMAIL})}, "id": "a", "type": "function"}
    turns = [{"role": "assistant", "content": None, "tool_calls": [called]}]
    turns += [{"role": "tool", "content": f"sent to {EMAIL}", "tool_call_id": "a"}, *CHAT["messages"]]
    body = CHAT | MODES[mode] | {"messages": turns, "tools": [TOOL], "temperature": 0}
    answer: dict[str, Any] = await edge.post("/v1/chat/completions", body, dict)
    sent = await went_up(edge, wire)
    assert "alice" not in sent and sent.count("<EMAIL_1>") >= 4
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"to": [EMAIL]}


async def test_a_schema_may_hold_private_words_too(
    edge: HTTPClient, wire: RecordingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await answers(monkeypatch, edge, '{"to": "<EMAIL_1>"}')
    wire.clear()
    schema = {"type": "object", "properties": {"to": {"enum": [EMAIL]}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    body = CHAT | MODES["rounds"] | {"response_format": wanted, "temperature": 0}
    answer: dict[str, Any] = await edge.post("/v1/chat/completions", body, dict)
    assert "alice" not in await went_up(edge, wire) and "<EMAIL_1>" in wire.texts()
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"to": EMAIL}


KEPT: dict[str, tuple[str, dict[str, Any]]] = {
    "log probabilities": ("/v1/chat/completions", CHAT | {"logprobs": True}),
    "edge only": ("/v1/chat/completions", CHAT | {"mode": "edge_only"}),
    "private": ("/v1/chat/completions", CHAT | {"private": True}),
    "a name": ("/v1/chat/completions", CHAT | {"tools": [TOOL | {"function": TOOL["function"] | {"name": NUMBER}}]}),
    "an argument's name": (
        "/v1/chat/completions",
        CHAT | {"tools": [TOOL | {"function": {"name": "f", "parameters": {"properties": {NUMBER: {}}}}}]},
    ),
    "cut in two": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in ("123-45", "-6789")]}]},
    ),
}


@pytest.mark.parametrize("case", KEPT)
async def test_what_cannot_be_replaced_or_need_not_stays_at_the_edge_as_it_is(
    edge: HTTPClient, wire: RecordingProxy, case: str
) -> None:
    wire.clear()
    path, body = KEPT[case]
    answer: dict[str, Any] = await edge.post(path, body | {"max_tokens": 2}, dict)
    assert answer["collaboration"]["mode"] == "edge_only"
    assert wire.lists() == []


async def test_prompts_of_token_ids_stay_at_the_edge(edge: HTTPClient, wire: RecordingProxy) -> None:
    wire.clear()
    body = {"prompt": await ids_of(edge, QUESTION), "max_tokens": 2, "mode": "cloud_only"}
    answer: dict[str, Any] = await edge.post("/v1/completions", body, dict)
    assert (answer["collaboration"]["mode"], wire.lists()) == ("edge_only", [])


async def test_the_edge_answers_with_the_words_where_the_cloud_is_lost(
    edge: HTTPClient, fake: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "full", True)
    body: dict[str, Any] = {"prompt": QUESTION, "echo": True, "max_tokens": 1} | MODES["rounds"]
    answer: dict[str, Any] = await edge.post("/v1/completions", body, dict)
    assert answer["collaboration"]["degraded"]
    assert answer["choices"][0]["text"].startswith(QUESTION)


async def test_a_conversation_that_goes_on_has_the_same_placeholders(
    edge: HTTPClient, wire: RecordingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await answers(monkeypatch, edge, ANSWER)
    body: dict[str, Any] = {"input": QUESTION, "max_output_tokens": 60, "mode": "cloud_only", "temperature": 0}
    first: dict[str, Any] = await edge.post("/v1/responses", body, dict)
    wire.clear()
    more = body | {"input": "And bob@example.com?", "previous_response_id": first["id"]}
    await edge.post("/v1/responses", more, dict)
    sent = await went_up(edge, wire)
    assert "I am <EMAIL_1>, my number is <PRIVATE_1>." in sent and ANSWER in sent
    assert "And <EMAIL_3>?" in sent, "<EMAIL_2> is a word of the conversation"
