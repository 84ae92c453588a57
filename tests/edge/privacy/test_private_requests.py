"""Requests that are private as a whole: by a field, a header, their API key, or the results of tools in them."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio

from benchmarks.fake_cloud import FakeCloud
from common.config_values import Secret
from common.errors import EndpointError
from common.http.client import HTTPClient
from tests.support.edge_in_process import edge_of

KEYS = ("edge.server.api_keys=[open-key]", "edge.private_keys=[private-key, both]")
OPEN, HIDDEN = {"Authorization": "Bearer open-key"}, {"X-Api-Key": "private-key"}
USER = [{"role": "user", "content": "What is AI?"}]
ASKS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": USER, "max_tokens": 2, "temperature": 0},
    "/v1/completions": {"prompt": "What is AI?", "max_tokens": 2, "temperature": 0},
    "/v1/responses": {"input": "What is AI?", "max_output_tokens": 2, "temperature": 0},
    "/v1/messages": {"messages": USER, "max_tokens": 2, "temperature": 0},
}
LOSSLESS = {"use_confidence_check": False}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge(fake: FakeCloud) -> AsyncIterator[HTTPClient]:
    async with edge_of(fake.url, *KEYS, "inference.private_tool_results=true") as made:
        yield made


async def post(
    edge: HTTPClient, path: str, body: Mapping[str, Any], headers: Mapping[str, str] = OPEN
) -> tuple[int, dict[str, Any]]:
    async with edge.session().post(edge.base_url + path, json=body, headers=headers) as reply:
        return reply.status, json.loads(await reply.read())


def sent(fake: FakeCloud) -> int:
    return len(fake.asked) + len(fake.starts)


SAID = {
    "field": (OPEN, {"private": True}),
    "older field": (OPEN, {"privacy": "edge_only"}),
    "header": (OPEN | {"X-Private": "True"}, {}),
    "header against field": (OPEN | {"X-Private": "true"}, {"private": False}),
    "key": (HIDDEN, {}),
    "key against header": (HIDDEN | {"X-Private": "false"}, {"private": False}),
}


@pytest.mark.parametrize("path", ASKS)
async def test_a_private_request_of_every_dialect_stays_at_the_edge(
    edge: HTTPClient, fake: FakeCloud, path: str
) -> None:
    before = sent(fake)
    for headers, fields in SAID.values():
        status, answer = await post(edge, path, ASKS[path] | LOSSLESS | fields, headers)
        assert (status, answer["collaboration"]["mode"]) == (200, "edge_only"), answer
    assert sent(fake) == before
    await post(edge, path, ASKS[path] | LOSSLESS | {"private": False}, OPEN | {"X-Private": "false"})
    assert sent(fake) > before, "the next one is not private, on the same connection"


async def test_what_continues_a_private_conversation_stays_at_the_edge_too(edge: HTTPClient, fake: FakeCloud) -> None:
    path, before = "/v1/responses", sent(fake)
    for case in ("field", "older field", "header"):
        headers, fields = SAID[case]
        _, answer = await post(edge, path, ASKS[path] | LOSSLESS | fields, headers)
        for _ in range(2):  # also what continues that one
            more = ASKS[path] | {"previous_response_id": answer["id"]}
            status, answer = await post(edge, path, more | LOSSLESS | {"private": False})
            assert (status, answer["collaboration"]["mode"]) == (200, "edge_only"), answer
        status, refusal = await post(edge, path, more | {"mode": "cloud_only"})
        assert (status, refusal["error"]["param"]) == (400, "previous_response_id")
    assert sent(fake) == before
    _, answer = await post(edge, path, ASKS[path] | LOSSLESS)
    await post(edge, path, ASKS[path] | LOSSLESS | {"previous_response_id": answer["id"]})
    assert sent(fake) > before, "others go on as before"


@pytest.mark.parametrize(
    ("case", "param"),
    [("field", "private"), ("older field", "privacy"), ("header", "X-Private"), ("key", "Authorization")],
)
async def test_what_asks_for_the_cloud_alone_and_is_private_is_refused_by_name(
    edge: HTTPClient, fake: FakeCloud, case: str, param: str
) -> None:
    before, (headers, fields) = sent(fake), SAID[case]
    for cloud in ({"mode": "cloud_only"}, {"model": "cloud"}):
        status, answer = await post(
            edge, "/v1/chat/completions", ASKS["/v1/chat/completions"] | cloud | fields, headers
        )
        assert (status, answer["error"]["param"]) == (400, param)
    status, answer = await post(edge, "/v1/embeddings", {"input": "x"} | fields, headers)
    assert (status, answer["error"]["param"]) == (400, param)
    assert sent(fake) == before


async def test_the_header_is_true_or_false(edge: HTTPClient) -> None:
    status, answer = await post(edge, "/v1/completions", ASKS["/v1/completions"], OPEN | {"X-Private": "yes"})
    assert (status, answer["error"]["param"]) == (400, "X-Private")


async def test_private_keys_are_keys_and_without_others_every_request_needs_one(edge: HTTPClient) -> None:
    for key in ("open-key", "private-key", "both"):
        async with HTTPClient(edge.base_url, api_key=Secret(key)) as client:
            assert "clouds" not in await client.get("/stats", dict), "each tenant has its own figures"
    with pytest.raises(EndpointError, match="401"):
        await edge.get("/stats", dict)
    async with edge_of("http://127.0.0.1:9", KEYS[1]) as closed:
        with pytest.raises(EndpointError, match="401"):
            await closed.post("/v1/completions", ASKS["/v1/completions"], dict)


CALLED = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [
            *USER,
            {"role": "assistant", "content": None, "tool_calls": [CALLED]},
            {"role": "tool", "content": "7", "tool_call_id": "a"},
        ]
    },
    "/v1/responses": {
        "input": [
            *USER,
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "7"},
        ]
    },
    "/v1/messages": {
        "messages": [
            *USER,
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "7"}]},
        ]
    },
}


@pytest.mark.parametrize("path", RESULTS)
async def test_what_tools_have_returned_stays_at_the_edge(edge: HTTPClient, fake: FakeCloud, path: str) -> None:
    before, body = sent(fake), ASKS[path] | RESULTS[path]
    for way in (LOSSLESS, {"mode": "cloud_only"}):
        status, answer = await post(edge, path, body | way)
        assert (status, answer["collaboration"]["mode"]) == (200, "edge_only"), answer
    assert sent(fake) == before
    field = next(iter(RESULTS[path]))
    await post(edge, path, body | {field: body[field][:1]} | LOSSLESS)
    assert sent(fake) > before, "without the result it goes to the cloud"


async def test_the_patterns_decide_about_results_and_formats_without_the_setting(fake: FakeCloud) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["seven"]}}}
    number = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": 777777}}}
    path, before = "/v1/chat/completions", sent(fake)
    body = ASKS[path] | RESULTS[path] | LOSSLESS
    async with edge_of(fake.url, "inference.private_patterns=[seven, '777777']") as edge:
        await post(edge, path, json.loads(json.dumps(body).replace('"7"', '"seven"')))
        for fields in ({"response_format": schema}, {"response_format": number}, {"guided_choice": ["seven"]}):
            _, answer = await post(edge, path, ASKS[path] | LOSSLESS | fields)
            assert (answer["collaboration"]["mode"], sent(fake)) == ("edge_only", before)
        await post(edge, path, body)
        assert sent(fake) > before


async def test_tokens_are_counted_for_private_requests_too(edge: HTTPClient) -> None:
    status, answer = await post(edge, "/v1/messages/count_tokens", {"messages": USER, "private": True})
    assert status == 200 and answer["input_tokens"] > 0
