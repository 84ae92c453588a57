"""Invalid input, and clients that stall or leave: the edge server refuses or frees, and answers the next request."""

import asyncio
import json
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from common import config
from common.http_server import HTTPServer
from edge.edge_server import build_app
from tests.conftest import Edge

HOST = "127.0.0.1"
ASK = {"prompt": "What is AI?", "max_tokens": 4, "temperature": 0}
LIST = {"type": "array", "items": {"type": "boolean"}, "minItems": 400}
LONG = ASK | {
    "max_tokens": 900,
    "response_format": {"type": "json_schema", "json_schema": {"name": "list", "schema": LIST}},
}
"""An answer that cannot end early."""
CLIENTS = 100
GIB = 2**30


def head(path: str, length: int | str, more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: edge\r\nContent-Length: {length}\r\n{more}\r\n".encode()


def memory(edge: Edge) -> int:
    """Bytes of the server's resident memory."""
    status = Path(f"/proc/{edge.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


async def engine_stats(edge: Edge) -> dict[str, int]:
    stats: dict[str, Any] = await edge.http.get("/stats", dict)
    return dict(stats["engine"])


async def answers(edge: Edge) -> bool:
    reply: dict[str, Any] = await edge.http.post("/v1/completions", ASK, dict)
    return bool(reply["choices"][0]["text"])


async def is_idle(edge: Edge) -> bool:
    stats = await engine_stats(edge)
    return stats["sequences_lent"] == stats["waiting"] == stats["prompt_tokens_now"] == 0


async def until(edge: Edge, true: Callable[[Edge], Any], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not await true(edge):
            await asyncio.sleep(0.02)


@asynccontextmanager
async def connection(edge: Edge) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    port = int(edge.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


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


# Bytes


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
    body = json.dumps({"tokens": [1] * 100_001}).encode()
    status = await reply_to(edge, head("/detokenize", len(body)) + body)
    assert status.startswith(b"HTTP/1.1 400")
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
        {"type": "string", "maxLength": 2**31},
        {"hidden": {"type": "string", "maxLength": 2**31}, "$ref": "#/hidden"},
        {"type": "string", "pattern": "^(a{1000}){1000}$"},
        {"type": "string", "pattern": "^(a?){128}$"},
        {"type": "integer", "minimum": 3},
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


async def test_a_body_of_a_gibibyte_is_refused_and_not_kept(edge: Edge) -> None:
    """Declared, or chunked without end: refused after some megabytes, and their memory is freed."""
    assert await answers(edge)
    before = memory(edge)
    for opening in (
        head("/v1/completions", GIB),
        b"POST /draft HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
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


# Clients that stall


async def test_slow_heads_and_bodies_and_half_closed_sockets_delay_no_other_request(edge: Edge) -> None:
    """Sixty connections send a part of a request and stall, or close their sending side: others are served."""
    before = memory(edge)
    parts = [b"POST /v1/compl", head("/v1/completions", 500) + b'{"prompt": "x', head("/v1/chat/completions", 9)]
    async with connections(edge, [parts[i % 3] for i in range(60)]) as writers:
        for writer in writers[::2]:
            writer.write_eof()
        for _ in range(5):
            assert await answers(edge)
        assert await is_idle(edge)
    assert await answers(edge)
    assert memory(edge) - before < 64 * 2**20


@asynccontextmanager
async def connections(edge: Edge, openings: list[bytes]) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """A connection for each opening, over which it is sent; all are closed at the end."""
    writers = []
    try:
        for opening in openings:
            _, writer = await asyncio.open_connection(HOST, int(edge.url.rpartition(":")[2]))
            writers.append(writer)
            writer.write(opening)
        yield writers
    finally:
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


# Clients that leave


async def test_a_hundred_clients_that_leave_at_random_moments_free_everything(edge: Edge) -> None:
    """Leases and queue return to 0 within a second of the last client leaving, after having been in use."""
    chance = random.Random(7)
    busy = 0

    async def visit(moment: float, kind: int) -> None:
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(moment):
                if kind == 0:
                    await aborting(edge, LONG | {"stream": False})
                else:
                    await reading(edge, LONG | {"stream": kind == 1, "n": 2})

    async def watch() -> None:
        nonlocal busy
        while True:
            stats = await engine_stats(edge)
            busy = max(busy, stats["sequences_lent"] + stats["waiting"])
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(visit(chance.uniform(0.01, 2), i % 3) for i in range(CLIENTS)))
    watching.cancel()
    await until(edge, is_idle, 1.0)
    assert busy > 10
    assert await answers(edge)


async def test_a_full_queue_is_a_429_with_retry_after_for_streams_too() -> None:
    settings = ["edge.model.sequences=1", "edge.limits.max_queue=0", "inference.features.use_draft_verify=false"]
    settings += ["inference.features.use_confidence_check=false"]
    server = HTTPServer(build_app(config.load(flags=settings, environment={})), HOST, 0)
    await server.start()
    url = f"http://{HOST}:{server.port}/v1/completions"
    try:
        async with aiohttp.ClientSession() as session:
            async with session.post(url, json=LONG | {"stream": True, "n": 4}) as held:
                await held.content.readline()
                for stream in (True, False):
                    async with session.post(url, json=ASK | {"stream": stream}) as refused:
                        assert (refused.status, "Retry-After" in refused.headers) == (429, True)
                        assert (await refused.json())["error"]["type"] == "rate_limit_error"
            async with asyncio.timeout(5):
                while (served := await session.post(url, json=ASK | {"stream": True})).status == 429:
                    await asyncio.sleep(0.02)
            assert b"[DONE]" in await served.read()
    finally:
        await server.stop()


async def reading(edge: Edge, body: dict[str, Any]) -> None:
    """Sends a request and reads until it is cancelled."""
    async with aiohttp.ClientSession() as session, session.post(edge.url + "/v1/completions", json=body) as response:
        async for _ in response.content:
            pass


async def aborting(edge: Edge, body: dict[str, Any]) -> None:
    """Sends a request, waits until it is cancelled, then resets the connection instead of closing it."""
    async with connection(edge) as (reader, writer):
        data = json.dumps(body).encode()
        writer.write(head("/v1/completions", len(data)) + data)
        try:
            await reader.read()
        finally:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


async def test_a_client_that_stays_holds_its_lease_until_it_leaves(edge: Edge) -> None:
    """The control of the test of leaving clients: without leaving nothing is freed."""

    async def is_busy(edge: Edge) -> bool:
        return not await is_idle(edge)

    staying = [asyncio.create_task(reading(edge, LONG | {"stream": True, "n": 16})) for _ in range(2)]
    await until(edge, is_busy, 5.0)
    await asyncio.sleep(0.2)
    assert await is_busy(edge)
    for task in staying:
        task.cancel()
    await asyncio.gather(*staying, return_exceptions=True)
    began = time.monotonic()
    await until(edge, is_idle, 1.0)
    assert time.monotonic() - began < 1.0
