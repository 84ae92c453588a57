"""Records what goes up to a server, byte by byte, and reads it: bodies of HTTP calls and frames of WebSockets."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import cycle

import msgspec

from common.cloud_client.privacy import texts_of
from experiments.harness.delay_proxy import DelayProxy, Direction

PLAIN = "communication.http_client.compression=none"
"""Setting of an edge whose bodies can be read."""


class _Recorded(asyncio.StreamReader):
    def __init__(self, reader: asyncio.StreamReader, sent: bytearray) -> None:
        super().__init__()
        self._reader, self._sent = reader, sent

    async def read(self, n: int = -1) -> bytes:
        data = await self._reader.read(n)
        self._sent.extend(data)
        return data


class RecordingProxy(DelayProxy):
    """Passes everything on; `connections_up` holds the bytes that each connection has sent up."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.connections_up: list[bytearray] = []

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Direction) -> None:
        if line is self.up:
            self.connections_up.append(bytearray())
            reader = _Recorded(reader, self.connections_up[-1])
        await super()._pump(reader, writer, line)

    def messages(self) -> list[object]:
        """All bodies and frames so far, decoded."""
        return [message for sent in self.connections_up for message in _messages(bytes(sent))]

    def clear(self) -> None:
        """Forgets the messages so far; connections that are open stay readable."""
        for sent in self.connections_up:
            head = re.match(rb"GET .*?\r\n\r\n", sent, re.DOTALL)
            sent[:] = head[0] if head and _is_upgrade(head[0]) else b""

    def lists(self) -> list[list[int]]:
        """All lists of numbers in the messages: token ids, among others."""
        return [each for message in self.messages() for each in _numbers(message)]

    def texts(self) -> str:
        """All texts in the messages, and the heads of the calls."""
        heads = b"".join(re.findall(rb"(?:GET|POST) .*?\r\n\r\n", b"".join(self.connections_up), re.DOTALL))
        return "\n".join([*texts_of(self.messages()), heads.decode("latin-1")])


@asynccontextmanager
async def recorded(url: str) -> AsyncIterator[RecordingProxy]:
    """A proxy in front of the server at `url`."""
    async with RecordingProxy("127.0.0.1", int(re.findall(r":(\d+)", url)[0])) as proxy:
        yield proxy


def _messages(sent: bytes) -> Iterator[object]:
    while head := re.match(rb"[A-Z]+ .*?\r\n\r\n", sent, re.DOTALL):
        sent = sent[head.end() :]
        if _is_upgrade(head[0]):
            yield from map(msgspec.msgpack.decode, _frames(sent))
            return
        length = re.search(rb"(?i)content-length: (\d+)", head[0])
        body, sent = (sent[: int(length[1])], sent[int(length[1]) :]) if length else (b"", sent)
        if body:
            yield (msgspec.msgpack if b"msgpack" in head[0] else msgspec.json).decode(body)
    assert not sent, "all that went up is read"


def _is_upgrade(head: bytes) -> bool:
    return re.search(rb"(?i)upgrade: websocket", head) is not None


def _frames(sent: bytes) -> Iterator[bytes]:
    """The payloads of a client's binary frames, unmasked (RFC 6455)."""
    while sent:
        size, place = sent[1] & 127, 2
        if size >= 126:
            place = 4 if size == 126 else 10
            size = int.from_bytes(sent[2:place], "big")
        mask, payload = sent[place : place + 4], sent[place + 4 : place + 4 + size]
        if sent[0] & 15 == 2:
            yield bytes(byte ^ key for byte, key in zip(payload, cycle(mask), strict=False))
        sent = sent[place + 4 + size :]


def _numbers(value: object) -> Iterator[list[int]]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        if value and all(isinstance(one, int) for one in value):
            yield value
        for one in value:
            yield from _numbers(one)
