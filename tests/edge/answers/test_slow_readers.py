"""Clients that do not read what is streamed to them: they hold neither a sequence nor a connection for long."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from aiohttp import web

from common.http import messages
from common.http.client import HTTPClient
from common.http.messages import stream
from common.http_server import HTTPServer, make_app
from tests.edge.api.test_leaving_clients import LONG
from tests.support.edge_in_process import edge_of
from tests.support.raw_edge import HOST, head

PATIENCE = 60.0


@contextmanager
def unread_request(port: int, path: str, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A request over a connection with a small buffer, from which nothing is read."""
    data = json.dumps(body).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((HOST, port))
        client.sendall(head(path, len(data)) + data)
        yield client


@pytest.mark.parametrize(("deadline", "ends"), [(0.2, True), (3600.0, False)])
async def test_a_stream_to_a_client_that_does_not_read_ends_after_a_deadline_and_never_without(
    deadline: float, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "SEND_SECONDS", deadline)
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"data: " + b"x" * 2**16 + b"\n\n"
        finally:
            closed.set()

    async def events(request: web.Request) -> web.StreamResponse:
        return await stream(request, endless())

    app = make_app()
    app.router.add_post("/events", events)
    server = HTTPServer(app, HOST, 0)
    await server.start()
    try:
        with unread_request(server.port, "/events", {}), nullcontext() if ends else pytest.raises(TimeoutError):
            await asyncio.wait_for(closed.wait(), PATIENCE if ends else 2.0)
    finally:
        await server.stop()


async def test_the_sequence_of_an_answer_that_nobody_reads_is_free_when_the_answer_is_computed() -> None:
    async with edge_of("http://127.0.0.1:1") as edge, asyncio.timeout(PATIENCE):
        body = LONG | {"mode": "edge_only", "stream": True, "logprobs": 20}
        with unread_request(int(edge.base_url.rpartition(":")[2]), "/v1/completions", body):
            while await lent(edge) == 0:
                await asyncio.sleep(0.01)
            while await lent(edge):
                await asyncio.sleep(0.05)


async def lent(edge: HTTPClient) -> int:
    stats: dict[str, Any] = await edge.get("/stats", dict)
    return int(stats["engine"]["sequences_lent"])
