"""Clients that are slow, half closed or do not speak HTTP are refused, and the next valid request succeeds."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from tests.support.small_server import SmallServer, small_server

HURRIED = {"BODY_SECONDS": 0.5, "KEEPALIVE_SECONDS": 1.0}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server() -> AsyncIterator[SmallServer]:
    async with small_server(HURRIED) as made:
        yield made


@pytest.fixture(autouse=True)
async def the_next_good_request_succeeds(server: SmallServer) -> AsyncIterator[None]:
    yield
    async with aiohttp.ClientSession() as session, session.post(server.url + "/typed", json={"count": 1}) as answer:
        assert (await answer.json())["count"] == 1


async def raw(server: SmallServer, *parts: bytes) -> bytes:
    """Everything that the server sends back for these raw bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(30):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


# --- time


async def test_a_head_that_does_not_come_ends_the_connection(server: SmallServer) -> None:
    assert await raw(server, b"POST /typed HTTP/1.1\r\nHost: localhost\r\nX-Slow: ") == b""
    assert await raw(server) == b""


async def test_a_body_that_does_not_come_is_a_timeout(server: SmallServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b'POST /typed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"te')
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 408 ")


async def test_without_the_deadlines_slow_clients_are_waited_for() -> None:
    """The negative control of the two tests above: without their deadlines nothing ends in three times that time."""
    async with small_server() as patient:
        for slow in (b"Host: localhost\r\nX-Slow: ", b"Host: localhost\r\nContent-Length: 9\r\n\r\n{"):
            reader, writer = await asyncio.open_connection("127.0.0.1", patient.port)
            writer.write(b"POST /typed HTTP/1.1\r\n" + slow)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3 * HURRIED["KEEPALIVE_SECONDS"]):
                    await reader.read()
            writer.close()


async def test_many_slow_clients_do_not_keep_others_out(server: SmallServer) -> None:
    opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(200)]
    for at, (_, writer) in enumerate(opened):
        writer.write(
            b"POST /typed HTTP/1.1\r\nHost: localhost\r\n" + (b"Content-Length: 99\r\n\r\n{" if at % 2 else b"")
        )
    async with aiohttp.ClientSession() as session, session.get(server.url + "/ready") as answer:
        assert answer.status == 200
    for _, writer in opened:
        writer.close()


# --- invalid HTTP


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: x\r\n" % at for at in range(5000)) + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
        b"POST /typed HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /typed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1e3\r\n\r\n",
        b"POST /typed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /typed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n{}",
        b"POST /typed HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"POST /typed HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET http://[broken/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: \xff\xfe\r\ntraceparent: \xff\r\n"
        b"Connection: close\r\n\r\n",
        b"POST /typed HTTP/1.1\r\nHost: localhost\r\nContent-Type: \xff;;=\r\nContent-Length: 1\r\n"
        b"Connection: close\r\n\r\n{",
        b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" + os.urandom(1000),
    ],
)
async def test_what_is_hardly_http_is_answered_as_an_error_or_not_at_all(server: SmallServer, sent: bytes) -> None:
    answer = await raw(server, sent)
    if answer:
        head, _, body = answer.partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 200 "):
            assert b'"ok"' in body  # only an id that cannot be taken over
        else:
            assert head.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
            assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("route", ["GET /tenant", "GET /nowhere", "POST /typed"])
async def test_an_expectation_that_is_not_known_is_refused_as_any_other_request(
    server: SmallServer, route: str
) -> None:
    head = f"{route} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: mine\r\nExpect: x\r\nConnection: close\r\n"
    answer = await raw(server, head.encode() + b"Content-Length: 2\r\n\r\n{}")
    head, _, body = answer.decode().partition("\r\n\r\n")
    assert (
        head.startswith("HTTP/1.1 417 ") and "X-Request-Id: mine" in head and "Content-Type: application/json" in head
    )
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and "100-continue" in error["message"]
    assert re.search(r"417 .*request mine\b", server.log()), "it is logged"


async def test_a_client_that_expects_to_continue_is_told_to(server: SmallServer) -> None:
    head = b"POST /typed HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nConnection: close\r\n"
    answer = await raw(server, head + b"Content-Length: 2\r\n\r\n{}")
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")


async def test_garbage_behind_a_good_request_does_not_harm_its_answer(server: SmallServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await reader.readuntil(b'{"status":"ok"}')).startswith(b"HTTP/1.1 200 ")
    writer.write(b"\0\xff garbage\r\n\r\n")
    async with asyncio.timeout(30):
        assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
    writer.close()


async def test_a_thousand_requests_in_one_breath_are_answered_in_turn(server: SmallServer) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = await raw(server, one * 999 + one.replace(b"Host: localhost", b"Host: localhost\r\nConnection: close"))
    assert answer.count(b"HTTP/1.1 200 ") == 1000


async def test_a_half_closed_socket_frees_the_server(server: SmallServer) -> None:
    for part in (b"", b"Host: localhost\r\nContent-Le", b"Host: localhost\r\nContent-Length: 9\r\n\r\n{"):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(part and b"POST /typed HTTP/1.1\r\n" + part)
        writer.write_eof()
        async with asyncio.timeout(30):
            answer = await reader.read()
        assert not answer or answer.startswith(b"HTTP/1.1 4")
        writer.close()
