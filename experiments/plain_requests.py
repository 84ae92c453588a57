"""Sends requests at moments of their own, whether or not earlier ones are answered, at little cost.

An HTTP library takes as long to send a request as a server to refuse it: on one machine it would be measured, too. So
requests are bytes that were made before, and of a reply only the status and the length are read.
"""

import asyncio
import json
import random
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

HEAD_END = b"\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
BROKEN = 0
"""The status of a request whose connection broke."""


class PlainReply(NamedTuple):
    """The end of one request, `seconds` after the moment when it was due."""

    status: int
    seconds: float
    late: float
    """Seconds from that moment until it was sent: the sender's own."""


class PlainClient:
    """As many connections to one server as there are requests at once; each is kept and used again."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._idle: list[_Connection] = []
        self._opened: list[_Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        for connection in self._opened:
            connection.transport.close()

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        """The request that sends this body as JSON."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(data)}".encode() + HEAD_END + data

    async def send(self, request: bytes, due: float) -> PlainReply:
        """Sends a request that is due at this moment of `time.perf_counter`, or was."""
        try:
            connection = self._idle.pop() if self._idle else await self._connect()
            sent = time.perf_counter()
            status = await connection.ask(request)
        except OSError:
            sent, status = time.perf_counter(), BROKEN
        else:
            self._idle.append(connection)
        return PlainReply(status, time.perf_counter() - due, sent - due)

    async def in_turns(self, clients: int, requests: Sequence[bytes], seconds: float) -> list[PlainReply]:
        """So many clients, each of which sends one of `requests` as soon as it has its answer."""
        replies, end = list[PlainReply](), time.perf_counter() + seconds

        async def one(chance: random.Random) -> None:
            while (now := time.perf_counter()) < end:
                replies.append(await self.send(chance.choice(requests), now))

        await asyncio.gather(*(one(random.Random(number)) for number in range(clients)))
        return replies

    async def at_rate(self, rate: float, requests: Sequence[bytes], seconds: float) -> list[PlainReply]:
        """Requests at random moments (Poisson), `rate` of them in a second."""
        chance, sent = random.Random(0), list[asyncio.Task[PlainReply]]()
        due = began = time.perf_counter()
        while (due := due + chance.expovariate(rate)) < began + seconds:
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            sent.append(asyncio.create_task(self.send(chance.choice(requests), due)))
        return await asyncio.gather(*sent)

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port)
        self._opened.append(connection)
        return connection


class _Connection(asyncio.Protocol):
    """One request after the other."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._received = b""
        self._status: asyncio.Future[int] | None = None

    async def ask(self, request: bytes) -> int:
        """The status of the reply, once all of it has come; ConnectionError if it does not."""
        if self.transport.is_closing():
            raise ConnectionResetError
        self._received, self._status = b"", asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._status

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(HEAD_END)
        length = LENGTH.search(head + b"\r\n")
        if end and length and len(body) >= int(length[1]) and self._status and not self._status.done():
            self._status.set_result(int(head[9:12]))

    def connection_lost(self, exception: Exception | None) -> None:
        if self._status and not self._status.done():
            self._status.set_exception(ConnectionResetError())
