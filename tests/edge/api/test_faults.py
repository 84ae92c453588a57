"""Invalid bodies, schemas and bytes: the edge server refuses them and answers the next request."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import aiohttp
import pytest

from tests.conftest import Edge
from tests.support.raw_edge import ASK, answers, connection, head, memory

GIB = 2**30


async def reply_to(edge: Edge, data: bytes) -> bytes:
    """The server's reply to these bytes, until it closes the connection or sends nothing for half a second."""
    received = b""
    async with connection(edge) as (reader, writer):
        writer.write(data)
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(0.5):
                while part := await reader.read(65536):
                    received += part
    return received


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/draft", "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"prompt": NaN}',
        b'{"prompt": Infinity}',
        b'{"prompt": 1e999}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": {"a": [1]}}',
        b'{"prompt": [1.5]}',
        b'{"messages": "hello"}',
        b'{"messages": [{"role": 5}]}',
        b'{"tokens": [99999999999999999999]}',
        b'{"tokens": [-1]}',
        b'{"prompt": "x", "max_tokens": -2147483648}',
        b'{"prompt": "x", "max_tokens": 1.5}',
        b'{"prompt": "x", "prompt": 7}',
        b'{"a":' * 50_000,
        b"[" * 200_000,
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_an_invalid_body_is_a_400_with_a_message(edge: Edge, path: str, body: bytes) -> None:
    async with aiohttp.ClientSession() as session, session.post(edge.url + path, data=body) as response:
        error = (await response.json())["error"]
    assert response.status == 400
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert await answers(edge)


async def test_too_many_token_ids_are_refused(edge: Edge) -> None:
    body = {"tokens": [1] * 100_001}
    async with aiohttp.ClientSession() as session, session.post(edge.url + "/detokenize", json=body) as response:
        assert response.status == 400
    assert await answers(edge)


async def test_huge_counts_are_limited_or_refused(edge: Edge) -> None:
    reply: dict[str, Any] = await edge.http.post("/v1/completions", ASK | {"max_tokens": 2**31, "stop": "."}, dict)
    assert reply["usage"]["completion_tokens"] < 1100
    for name in ("n", "top_k", "logprobs", "max_draft_tokens", "best_of"):
        body = ASK | {name: 2**31}
        async with (
            aiohttp.ClientSession() as session,
            session.post(edge.url + "/v1/completions", json=body) as response,
        ):
            assert (response.status, (await response.json())["error"]["param"]) == (400, name)


@pytest.mark.parametrize(
    "schema",
    [
        {"hidden": {"type": "string", "maxLength": 2**31}, "$ref": "#/hidden"},
        {"type": "array", "minItems": 2**31},
        {"$ref": "#"},
        {"$ref": "http://127.0.0.1:1/schema"},
        {"type": "object", "properties": {f"k{i}": {} for i in range(4000)}},
        {"type": 5},
        {"const": "x" * 70_000},
    ],
    ids=lambda schema: str(schema)[:40],
)
async def test_a_schema_that_cannot_be_enforced_is_refused(edge: Edge, schema: dict[str, Any]) -> None:
    before = memory(edge)
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = ASK | {"response_format": wanted}
    async with aiohttp.ClientSession() as session, session.post(edge.url + "/v1/completions", json=body) as response:
        assert (response.status, (await response.json())["error"]["param"]) == (400, "response_format")
    assert memory(edge) - before < 64 * 2**20
    assert await answers(edge)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 2**31},
        {"type": "string", "pattern": "^(a{1000}){1000}$"},
        {"type": "string", "pattern": "^(a?){128}$"},
        {"type": "string", "pattern": "^([a-z]*|[a-z]*|[a-z]*|[a-z]*)*$"},
        {"type": "object", "properties": {f"k{i}": {} for i in range(450)}},
    ],
    ids=lambda schema: str(schema)[:40],
)
async def test_a_schema_with_many_ways_through_costs_little(edge: Edge, schema: dict[str, Any]) -> None:
    before = memory(edge)
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    await asyncio.gather(
        *(edge.http.post("/v1/completions", ASK | {"response_format": wanted}, dict) for _ in range(4))
    )
    assert memory(edge) - before < 64 * 2**20
    assert await answers(edge)


async def test_a_body_of_a_gibibyte_is_refused_and_not_kept(edge: Edge) -> None:
    """Declared, or chunked without end: refused after some megabytes, and their memory is freed."""
    assert await answers(edge)
    before = memory(edge)
    for opening in (
        head("/v1/completions", GIB),
        b"POST /draft HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
    ):
        chunked = b"chunked" in opening
        part = b"x" * 2**20
        sent, answer = 0, b""
        async with connection(edge) as (reader, writer):
            writer.write(opening)
            with suppress(ConnectionError):
                while sent < GIB and not answer:
                    writer.write(b"100000\r\n" + part + b"\r\n" if chunked else part)
                    await writer.drain()
                    sent += len(part)
                    with suppress(TimeoutError):
                        answer = await asyncio.wait_for(reader.read(4096), 0.001)
        assert answer.startswith(b"HTTP/1.1 413")
        assert sent < GIB // 4
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert await answers(edge)
    assert memory(edge) - before < 64 * 2**20


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        head("/draft", -1) + b"x",
        head("/draft", "many") + b"x",
        head("/draft", 5, "Content-Length: 6\r\n") + b"hello",
        b"GET /health HTTP/1.1\r\n" + b"X-A: " + b"a" * 100_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        bytes(range(256)) * 20,
    ],
    ids=lambda data: repr(data[:20]),
)
async def test_invalid_http_is_answered_or_closed_and_the_next_request_is_answered(edge: Edge, data: bytes) -> None:
    reply = await reply_to(edge, data)
    assert not reply or reply.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
    assert await answers(edge)
