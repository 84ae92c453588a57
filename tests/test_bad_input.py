"""What no client should send: an error in OpenAI's shape, flat memory, and the next good request succeeds."""

import asyncio
import contextlib
import functools
import gzip
import io
import json
import os
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio

from common import wire
from common.http_messages import BODY_LIMIT
from tests.small_server import SmallServer, small_server

GIB = 2**30
GROWTH = 150 * 2**20
"""Bytes by which the worst bodies may let a server grow: the Python objects of one full body, for a moment."""
HURRIED = {"BODY_SECONDS": 0.5, "KEEPALIVE_SECONDS": 1.0}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server() -> AsyncIterator[SmallServer]:
    async with small_server(HURRIED) as made:
        yield made


@pytest.fixture(autouse=True)
async def the_next_good_request_succeeds(server: SmallServer) -> AsyncIterator[None]:
    before = server.peak_memory
    yield
    async with aiohttp.ClientSession() as session, session.post(server.url + "/typed", json={"count": 1}) as answer:
        assert (await answer.json())["count"] == 1
    assert server.peak_memory - before < GROWTH


async def post(server: SmallServer, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and error object of a refusal, which may come before the body has been sent."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(server.url + path, data=body, headers=headers) as answer,
    ):
        return answer.status, await refusal(answer)


async def refusal(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    decode = msgspec.msgpack.decode if answer.content_type == wire.MSGPACK else json.loads
    error: dict[str, Any] = decode(await answer.read())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


def deep(opening: bytes) -> bytes:
    return opening * 100_000


JSON_BODIES = {
    "count of a wrong type": b'{"count": "many"}',
    "count that is no integer": b'{"count": 1.5}',
    "count beyond 64 bits": b'{"count": 99999999999999999999999}',
    "a negative count": b'{"count": -1}',
    "a number of 100,000 digits": b'{"count": ' + b"9" * 100_000 + b"}",
    "NaN": b'{"share": NaN}',
    "infinity": b'{"share": 1e999}',
    "null for a number": b'{"count": null}',
    "an unknown field": b'{"more": 1}',
    "a list for an object": b"[]",
    "nothing": b"",
    "half of it": b'{"text": "abc',
    "two of them": b"{} {}",
    "invalid UTF-8": b'{"text": "\xff\xfe"}',
    "UTF-16": '{"text": "x"}'.encode("utf-16"),
    "a lone surrogate": b'{"text": "\\ud800"}',
    "a surrogate's wrong half": b'{"text": "\\udc00\\ud800"}',
    "a NUL": b'{"text": "\x00"}',
    "deep lists": deep(b"["),
    "deep lists in a field": b'{"ids": ' + deep(b"["),
    "deep objects": deep(b'{"text":'),
    "an id of a wrong type": b'{"ids": [1, "2"]}',
}
PACKED_BODIES = {
    "NaN": b"\x81\xa5count\xcb\x7f\xf8\0\0\0\0\0\0",
    "a list of 4 billion": b"\x81\xa3ids\xdd\xff\xff\xff\xff\x01",
    "an object of 4 billion": b"\xdf\xff\xff\xff\xff\xa3ids",
    "a text of 4 GiB": b"\x81\xa4text\xdb\xff\xff\xff\xffx",
    "invalid UTF-8": b"\x81\xa4text\xa2\xff\xfe",
    "deep lists": b"\x81\xa3ids" + deep(b"\x91"),
    "deep objects": deep(b"\x81\xa4text"),
    "a map as a key": b"\x81\x81\x01\x02\x03",
    "JSON": b'{"count": 1}',
    "an extension": b"\x81\xa4text\xc7\x02\x05ab",
}


def bodies() -> Iterator[Any]:
    for name, body in JSON_BODIES.items():
        yield pytest.param(wire.JSON, body, id=f"JSON: {name}")
    for name, body in PACKED_BODIES.items():
        yield pytest.param(wire.MSGPACK, body, id=f"MessagePack: {name}")


@pytest.mark.parametrize(("content_type", "body"), [*bodies()])
async def test_a_body_that_is_not_what_was_asked_for_is_refused(
    server: SmallServer, content_type: str, body: bytes
) -> None:
    status, error = await post(server, "/typed", body, **{"Content-Type": content_type})
    assert status == 400
    assert error["message"]


@pytest.mark.parametrize(
    ("content_type", "value"),
    [
        (wire.JSON, b'{"x": NaN}'),
        (wire.JSON, b'{"x": [1, 99999999999999999999999]}'),
        (wire.JSON, b'{"x": {"y": -99999999999999999999999}}'),
        (wire.JSON, b'{"x": ' + b"[" * 950 + b"1.0" + b"]" * 950 + b"}"),
        (wire.JSON, b'{"x": "\xff"}'),
        (wire.JSON, b'{"x": ' + deep(b"[")),
        (wire.MSGPACK, b"\x81\xa1x\xcb\x7f\xf8\0\0\0\0\0\0"),
        (wire.MSGPACK, b"\x81\xa1x\x91\xcb\x7f\xf0\0\0\0\0\0\0"),
        (wire.MSGPACK, b"\x81\xa1x\xc7\x02\x05ab"),
        (wire.MSGPACK, b"\x81\xa1x\xd6\xff\0\0\0\0"),
        (wire.MSGPACK, b"\x81\xa1x\xc4\x01a"),
        (wire.MSGPACK, b"\x81\xa1x\x81\x01\x02"),
        (wire.MSGPACK, b"\x81\xa1x" + deep(b"\x91")),
        (wire.MSGPACK, deep(b"\x81\xa1x")),
    ],
)
async def test_what_json_cannot_say_is_refused_where_no_types_do_it(
    server: SmallServer, content_type: str, value: bytes
) -> None:
    assert (await post(server, "/untyped", value, **{"Content-Type": content_type}))[0] == 400


async def test_of_a_key_given_twice_the_last_one_counts(server: SmallServer) -> None:
    """As every common parser has it."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(server.url + "/typed", data=b'{"count": 1, "count": 2}') as answer,
    ):
        assert (await answer.json())["count"] == 2


async def test_many_small_objects_in_one_body_are_no_lever(server: SmallServer) -> None:
    body = b'{"x": [' + b"{}," * (BODY_LIMIT // 3 - 10) + b"{}]}"
    async with aiohttp.ClientSession() as session:
        for _ in range(5):
            async with session.post(server.url + "/untyped", data=io.BytesIO(body)) as answer:
                assert answer.status == 400
                assert "lists and objects" in (await refusal(answer))["message"]


# --- size


async def endless(total: int) -> AsyncIterator[bytes]:
    for _ in range(total // 2**20):
        yield bytes(2**20)


async def raw(server: SmallServer, *parts: bytes) -> bytes:
    """What comes back, up to the end, for bytes that no HTTP client would send."""
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


async def test_a_body_that_says_it_is_a_gibibyte_is_refused_before_it_comes(server: SmallServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST /typed HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % GIB)
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("path", ["/typed", "/nowhere"])
@pytest.mark.parametrize("told", [True, False], ids=["with its length", "in chunks"])
async def test_a_gibibyte_is_not_kept(server: SmallServer, path: str, told: bool) -> None:
    headers = {"Content-Length": str(GIB)} if told else {}
    async with aiohttp.ClientSession() as session:
        try:
            async with session.post(server.url + path, data=endless(GIB), headers=headers) as answer:
                assert answer.status == (413 if path == "/typed" else 404)
                await refusal(answer)
        except aiohttp.ClientError:  # the server has closed the connection in the middle of it
            pass


async def test_without_the_limit_a_big_body_is_kept(server: SmallServer) -> None:
    """The negative control: the measure of memory sees a body that is kept."""
    async with small_server({"BODY_LIMIT": GIB}) as unlimited, aiohttp.ClientSession() as session:
        before = unlimited.peak_memory
        async with session.post(unlimited.url + "/typed", data=endless(2 * GROWTH)) as answer:
            assert answer.status == 400
        assert unlimited.peak_memory - before > GROWTH


@functools.cache
def bomb(encoding: str) -> bytes:
    """Far more zeros than GROWTH in a small body; where the encoder is not installed, what claims to be that."""
    if encoding == "gzip":
        return gzip.compress(bytes(2**27)) * 8
    if encoding == "deflate":
        return zlib.compress(bytes(3 * GROWTH))
    return os.urandom(2**20)


@pytest.mark.parametrize("path", ["/typed", "/untyped", "/nowhere"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "unheard-of"])
async def test_a_compressed_body_is_refused_unopened(server: SmallServer, encoding: str, path: str) -> None:
    status, _ = await post(server, path, bomb(encoding), **{"Content-Encoding": encoding})
    assert status == (404 if path == "/nowhere" else 415)


# --- time


async def test_a_head_that_does_not_come_ends_the_connection(server: SmallServer) -> None:
    assert await raw(server, b"POST /typed HTTP/1.1\r\nHost: x\r\nX-Slow: ") == b""
    assert await raw(server) == b""


async def test_a_body_that_does_not_come_is_a_timeout(server: SmallServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b'POST /typed HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"te')
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 408 ")


async def test_without_the_deadlines_slow_clients_are_waited_for() -> None:
    """The negative control of the two tests above, which see the end of what here goes on three times as long."""
    async with small_server() as patient:
        for slow in (b"Host: x\r\nX-Slow: ", b"Host: x\r\nContent-Length: 9\r\n\r\n{"):
            reader, writer = await asyncio.open_connection("127.0.0.1", patient.port)
            writer.write(b"POST /typed HTTP/1.1\r\n" + slow)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3 * HURRIED["KEEPALIVE_SECONDS"]):
                    await reader.read()
            writer.close()


async def test_many_slow_clients_do_not_keep_others_out(server: SmallServer) -> None:
    opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(200)]
    for at, (_, writer) in enumerate(opened):
        writer.write(b"POST /typed HTTP/1.1\r\nHost: x\r\n" + (b"Content-Length: 99\r\n\r\n{" if at % 2 else b""))
    async with aiohttp.ClientSession() as session, session.get(server.url + "/ready") as answer:
        assert answer.status == 200
    for _, writer in opened:
        writer.close()


# --- no HTTP


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: x\r\n" % at for at in range(5000)) + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"POST /typed HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /typed HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n",
        b"POST /typed HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /typed HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n{}",
        b"POST /typed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"POST /typed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET http://[broken/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Request-Id: \xff\xfe\r\ntraceparent: \xff\r\nConnection: close\r\n\r\n",
        b"POST /typed HTTP/1.1\r\nHost: x\r\nContent-Type: \xff;;=\r\nContent-Length: 1\r\nConnection: close\r\n\r\n{",
        b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + os.urandom(1000),
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


async def test_garbage_behind_a_good_request_does_not_harm_its_answer(server: SmallServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.readuntil(b'{"status":"ok"}')).startswith(b"HTTP/1.1 200 ")
    writer.write(b"\0\xff garbage\r\n\r\n")
    async with asyncio.timeout(30):
        assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
    writer.close()


async def test_a_thousand_requests_in_one_breath_are_answered_in_turn(server: SmallServer) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = await raw(server, one * 999 + one.replace(b"Host: x", b"Host: x\r\nConnection: close"))
    assert answer.count(b"HTTP/1.1 200 ") == 1000


async def test_a_half_closed_socket_frees_the_server(server: SmallServer) -> None:
    for part in (b"", b"Host: x\r\nContent-Le", b"Host: x\r\nContent-Length: 9\r\n\r\n{"):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(part and b"POST /typed HTTP/1.1\r\n" + part)
        writer.write_eof()
        async with asyncio.timeout(30):
            answer = await reader.read()
        assert not answer or answer.startswith(b"HTTP/1.1 4")
        writer.close()


async def test_a_websocket_message_too_long_closes_the_socket(server: SmallServer) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(server.url + "/socket") as socket:
        with contextlib.suppress(ConnectionError):  # the server does not wait for the whole message
            await socket.send_bytes(bytes(BODY_LIMIT + 1))
        message = await socket.receive()
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.ERROR, aiohttp.WSMsgType.CLOSED)
