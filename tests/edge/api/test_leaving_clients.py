"""Clients that stall or leave: they delay no other request, and everything that they held is freed."""

import asyncio
import json
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp

from common import config
from common.http_server import HTTPServer
from edge.edge_server import build_app
from tests.conftest import Edge
from tests.support.raw_edge import ASK, HOST, answers, connection, engine_stats, head, is_idle, memory, until

LIST = {"type": "array", "items": {"type": "boolean"}, "minItems": 400}
LONG = ASK | {
    "max_tokens": 900,
    "response_format": {"type": "json_schema", "json_schema": {"name": "list", "schema": LIST}},
}
"""An answer that cannot end early."""
CLIENTS = 100
FREED_SECONDS = 10.0
"""Less than the answers themselves would take that have been left."""


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


async def test_a_hundred_clients_that_leave_at_random_moments_free_everything(edge: Edge) -> None:
    """Leases and queue return to 0 when the last client has left, after having been in use: some had to wait."""
    chance = random.Random(7)
    busy = 0
    await edge.http.post("/v1/completions", LONG | {"max_tokens": 1}, dict)  # so that its grammar is compiled

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
    await until(edge, is_idle, FREED_SECONDS)
    assert busy > (await engine_stats(edge))["sequences"]
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
            async with asyncio.timeout(30):
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
    await until(edge, is_busy, 30.0)
    await asyncio.sleep(0.2)
    assert await is_busy(edge)
    for task in staying:
        task.cancel()
    await asyncio.gather(*staying, return_exceptions=True)
    await until(edge, is_idle, FREED_SECONDS)
