"""What a server with OpenAI's API gets of a request with private words, as text, in whole requests, and in infills."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from common.errors import RequestError
from common.http.client import HTTPClient
from tests.edge.privacy.test_wire import EMAIL, NUMBER, PARTS, PATTERNS, QUESTION, REDACT, RESTORED, TOOL, answer_of
from tests.edge.privacy.wire import PLAIN, RecordingProxy, recorded
from tests.support.edge_in_process import edge_of
from tests.support.fake_openai import KEY, FakeOpenAI, serving

WORDS = ("Write to <EM", "AIL_1>", ", call <PRIVATE", "_1> or <EMAIL_2>.")
MESSAGES = [{"role": "user", "content": QUESTION}]
NEVER_SURE = {"confidence_threshold": 1.0, "product_threshold": 1.0}
CHAT: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 60, "temperature": 0}
COMPLETION: dict[str, Any] = {"prompt": QUESTION, "max_tokens": 60, "temperature": 0}


@asynccontextmanager
async def pair(owner: str, *settings: str) -> AsyncIterator[tuple[FakeOpenAI, RecordingProxy, HTTPClient]]:
    async with serving(owner) as fake, recorded(fake.url) as wire:
        fake.words = WORDS
        clouds = json.dumps([{"url": f"{wire.url}/v1", "kind": "openai", "api_key": KEY}])
        async with edge_of("http://localhost:8081", f"communication.clouds={clouds}", PLAIN, *settings) as edge:
            yield fake, wire, edge


WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "gated chat": ("/v1/chat/completions", CHAT | NEVER_SURE),
    "cloud only": ("/v1/chat/completions", CHAT | {"mode": "cloud_only"}),
    "completion": ("/v1/completions", COMPLETION | NEVER_SURE),
    "messages": ("/v1/messages", {"messages": MESSAGES, "max_tokens": 60} | NEVER_SURE),
    "responses": ("/v1/responses", {"input": QUESTION} | NEVER_SURE),
    "field": ("/v1/chat/completions", CHAT | {"bad_words": [EMAIL], "user": EMAIL}),
    "field of a completion": ("/v1/completions", COMPLETION | {"best_of": 3}),
    "tools": ("/v1/chat/completions", CHAT | {"tools": [TOOL], "mode": "cloud_only"}),
}


@pytest.mark.parametrize(("owner", "streams"), [("vllm", (False, True)), ("somebody", (True,))])
async def test_private_words_are_nowhere_in_what_the_server_gets_and_in_the_answer_again(
    owner: str, streams: tuple[bool, ...]
) -> None:
    async with pair(owner, PATTERNS, REDACT) as (fake, wire, edge):
        for name, (path, body) in WAYS.items():
            for stream in streams:
                said = await answer_of(edge, path, body, stream)
                assert RESTORED in said and "<EMAIL_1>" not in said, name
        assert len(fake.asked) == len(streams) * len(WAYS)
        assert all("my number is <PRIVATE_1>" in json.dumps(body) for _, body in fake.asked)
        assert not any(word in wire.texts() for word in PARTS)


async def test_without_protection_the_same_words_are_found_there() -> None:
    async with pair("vllm", REDACT) as (_, wire, edge):
        for name in ("gated chat", "field"):
            wire.clear()
            await answer_of(edge, *WAYS[name], stream=False)
            assert EMAIL in wire.texts() and NUMBER in wire.texts()


async def test_whole_requests_that_may_not_leave_do_not() -> None:
    async with pair("vllm", PATTERNS, REDACT, "inference.private_tool_results=true") as (fake, wire, edge):
        image = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": "https://a.b/c"}}]
        result = [*MESSAGES, {"role": "function", "content": "7", "name": "f"}]
        parts = [{"type": "text", "text": NUMBER[:5]}, {"type": "text", "text": NUMBER[5:]}]
        cut = [{"type": "text", "text": EMAIL[:-5]}, {"type": "text", "text": EMAIL[-5:]}]
        for fields in (
            {"messages": [{"role": "user", "content": image}]},
            {"best_of": 3, "private": True},
            {"best_of": 3, "logprobs": True},
            {"best_of": 3, "messages": result},
            {"best_of": 3, "metadata": {NUMBER: "x"}},
            {"best_of": 3, "messages": [{"role": "user", "content": parts}]},
            {"best_of": 3, "messages": [{"role": "user", "content": cut}]},
        ):
            with pytest.raises(RequestError):
                await edge.post("/v1/chat/completions", CHAT | fields, dict)
        assert fake.asked == [] and EMAIL not in wire.texts()


ESCAPED = r'{"to": "alice.smith\u0040example.com"}'
CALLED = {"id": "a", "type": "function", "function": {"name": "mail", "arguments": ESCAPED}}
CALL = {"role": "assistant", "content": None, "tool_calls": [CALLED]}
RESULT = {"role": "tool", "content": ESCAPED, "tool_call_id": "a"}
HALF = {"name": "mail", "arguments": r'{"to": "\ud83d alice.smith@example.com"}'}
PLAIN_CALL = CALL | {"tool_calls": [CALLED | {"function": {"name": "mail", "arguments": "{}"}}]}
HI = {"role": "user", "content": "Hi"}
HIDDEN: dict[str, dict[str, Any]] = {
    "an argument": {"messages": [HI, CALL, HI]},
    "half a character": {"messages": [HI, CALL | {"tool_calls": [CALLED | {"function": HALF}]}, HI]},
    "a result": {"messages": [HI, PLAIN_CALL, RESULT, HI]},
}


async def test_words_that_are_escaped_in_json_stay_at_the_edge() -> None:
    async with pair("somebody", PATTERNS) as (fake, _, edge):
        for fields in HIDDEN.values():
            gated: dict[str, Any] = await edge.post("/v1/chat/completions", CHAT | NEVER_SURE | fields, dict)
            assert gated["collaboration"]["mode"] == "edge_only"
            with pytest.raises(RequestError, match="best_of"):
                await edge.post("/v1/chat/completions", CHAT | {"best_of": 3} | fields, dict)
        assert fake.asked == []


async def test_words_that_are_escaped_in_json_are_replaced() -> None:
    async with pair("somebody", PATTERNS, REDACT) as (fake, _, edge):
        for name, fields in HIDDEN.items():
            for way in (NEVER_SURE, {"best_of": 3}):
                await edge.post("/v1/chat/completions", CHAT | way | fields, dict)
                asked = json.dumps(fake.asked.pop())
                assert "<EMAIL_1>" in asked and "example.com" not in asked, name


async def test_numbers_below_the_settings_of_a_request_are_searched_too() -> None:
    schema = {"type": "object", "properties": {"n": {"const": 123456789}}}
    tool = TOOL | {"function": {"name": "f", "parameters": schema}}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    async with pair("vllm", r"inference.private_patterns=['\b[0-9]{9}\b']") as (fake, _, edge):
        for fields in ({"metadata": {"n": 123456789}}, {"response_format": wanted}, {"tools": [tool]}):
            with pytest.raises(RequestError, match="best_of"):
                await edge.post("/v1/chat/completions", CHAT | {"best_of": 3} | fields, dict)
        await edge.post("/v1/chat/completions", CHAT | {"mode": "cloud_only", "tools": [tool]}, dict)
        assert fake.asked == []
        await edge.post("/v1/chat/completions", CHAT | {"best_of": 3, "seed": 123456789, "metadata": {"n": 12}}, dict)
        assert len(fake.asked) == 1


async def test_short_numbers_are_replaced_in_whole_requests_and_json_stays_json() -> None:
    found = json.dumps([r"\b\d+\b", '(?P<SAID>a "word")'])
    async with pair("vllm", f"inference.private_patterns={found}", REDACT) as (fake, _, edge):
        fake.words = ('{"is": "<SA', 'ID_1>", "in": "<PRIVATE_1>"}')
        messages = [{"role": "user", "content": 'a "word" in room 1'}]
        fields = {"messages": messages, "best_of": 3, "response_format": {"type": "json_object"}}
        whole: dict[str, Any] = await edge.post("/v1/chat/completions", CHAT | fields, dict)
        streamed = await answer_of(edge, "/v1/chat/completions", CHAT | fields, stream=True)
        assert [body["messages"][0]["content"] for _, body in fake.asked] == ["<SAID_1> in room <PRIVATE_1>"] * 2
        for answer in (whole["choices"][0]["message"]["content"], streamed):
            assert json.loads(answer) == {"is": 'a "word"', "in": "1"}
