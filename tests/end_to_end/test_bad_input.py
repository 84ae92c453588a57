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
import zstandard

from common.http.messages import BODY_LIMIT
from common.protocol import codec
from tests.support.small_server import SmallServer, small_server

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
    decode = msgspec.msgpack.decode if answer.content_type == codec.MSGPACK else json.loads
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
    "null for a number in a list": b'{"ids": [null]}',
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
        yield pytest.param(codec.JSON, body, id=f"JSON: {name}")
    for name, body in PACKED_BODIES.items():
        yield pytest.param(codec.MSGPACK, body, id=f"MessagePack: {name}")


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
        (codec.JSON, b'{"x": NaN}'),
        (codec.JSON, b'{"x": [1, 99999999999999999999999]}'),
        (codec.JSON, b'{"x": {"y": -99999999999999999999999}}'),
        (codec.JSON, b'{"x": ' + b"[" * 950 + b"1.0" + b"]" * 950 + b"}"),
        (codec.JSON, b'{"x": "\xff"}'),
        (codec.JSON, b'{"x": ' + deep(b"[")),
        (codec.MSGPACK, b"\x81\xa1x\xcb\x7f\xf8\0\0\0\0\0\0"),
        (codec.MSGPACK, b"\x81\xa1x\x91\xcb\x7f\xf0\0\0\0\0\0\0"),
        (codec.MSGPACK, b"\x81\xa1x\xc7\x02\x05ab"),
        (codec.MSGPACK, b"\x81\xa1x\xd6\xff\0\0\0\0"),
        (codec.MSGPACK, b"\x81\xa1x\xc4\x01a"),
        (codec.MSGPACK, b"\x81\xa1x\x81\x01\x02"),
        (codec.MSGPACK, b"\x81\xa1x" + deep(b"\x91")),
        (codec.MSGPACK, deep(b"\x81\xa1x")),
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


async def test_a_body_that_says_it_is_a_gibibyte_is_refused_before_it_comes(server: SmallServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST /typed HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % GIB)
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
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip", "zstd, zstd", "unheard-of"])
async def test_a_compressed_body_is_refused_unopened(server: SmallServer, encoding: str, path: str) -> None:
    status, _ = await post(server, path, bomb(encoding), **{"Content-Encoding": encoding})
    assert status == (404 if path == "/nowhere" else 415)


def zstd_bombs() -> dict[str, bytes]:
    """Far more zeros than GROWTH, its size declared, not declared, or declared as less; and what is no zstd."""
    zeros = bytes(2 * GROWTH)
    undeclared = zstandard.ZstdCompressor(write_content_size=False).compress(zeros)
    honest = zstandard.compress(zeros)
    assert zstandard.frame_content_size(honest) == len(zeros)
    at = honest.index(len(zeros).to_bytes(4, "little"))
    liar = honest[:at] + (100).to_bytes(4, "little") + honest[at + 4 :]
    assert zstandard.frame_content_size(liar) == 100
    twice = zstandard.compress(b'{"count": 1}') + zstandard.compress(zeros)
    return {"declared": honest, "undeclared": undeclared, "a lie": liar, "twice": twice, "noise": os.urandom(2**20)}


@pytest.mark.parametrize(("kind", "wanted"), [("declared", 413), ("undeclared", 415), ("a lie", 400), ("twice", 400)])
@pytest.mark.parametrize("path", ["/typed", "/untyped"])
async def test_a_compressed_bomb_is_refused_unopened(server: SmallServer, path: str, kind: str, wanted: int) -> None:
    status, _ = await post(server, path, zstd_bombs()[kind], **{"Content-Encoding": "zstd"})
    assert status == wanted


async def test_what_is_no_zstd_is_refused_and_what_is_is_read(server: SmallServer) -> None:
    status, _ = await post(server, "/typed", zstd_bombs()["noise"], **{"Content-Encoding": "zstd"})
    assert status == 400
    headers = {"Content-Encoding": "zstd", "Content-Type": codec.JSON}
    body = zstandard.compress(b'{"count": 7}')
    async with (
        aiohttp.ClientSession() as session,
        session.post(server.url + "/typed", data=body, headers=headers) as answer,
    ):
        assert (await answer.json())["count"] == 7


async def test_a_websocket_message_too_long_closes_the_socket(server: SmallServer) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(server.url + "/socket") as socket:
        with contextlib.suppress(ConnectionError):  # the server does not wait for the whole message
            await socket.send_bytes(bytes(BODY_LIMIT + 1))
        message = await socket.receive()
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.ERROR, aiohttp.WSMsgType.CLOSED)
