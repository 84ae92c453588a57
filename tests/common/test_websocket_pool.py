"""Streams over kept connections (F4): the same answers with fewer handshakes, and no new ways to fail."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from benchmarks.fake_cloud import FakeCloud
from cloud.engine.engine import CloudEngine
from cloud.routes import stream as stream_route
from cloud.routes.stream import StreamRoute
from common.cloud_client.stream import CloudStream
from common.config_schema import HttpClientConfig
from common.errors import EndpointError
from common.http.client import HTTPClient
from common.http.messages import websocket
from common.http_server import HTTPServer, make_app
from common.protocol.stream_frames import StartFrame
from experiments.harness.delay_proxy import DelayProxy

pytestmark = pytest.mark.asyncio(loop_scope="session")
PROMPT = [5, 6, 7]


@asynccontextmanager
async def running(app: web.Application, drain_seconds: float = 5.0) -> AsyncIterator[HTTPServer]:
    server = HTTPServer(app, "127.0.0.1", 0, drain_seconds=drain_seconds)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def behind_proxy(engine: CloudEngine, **config: Any) -> AsyncIterator[tuple[HTTPServer, DelayProxy, HTTPClient]]:
    app = make_app()
    StreamRoute(engine).add_to(app)
    async with (
        running(app) as server,
        DelayProxy("127.0.0.1", server.port) as proxy,
        HTTPClient(proxy.url, HttpClientConfig(**config)) as client,
    ):
        yield server, proxy, client


async def answer(client: HTTPClient, prompt: list[int], drafts: list[int] | None = None) -> list[int]:
    found: list[int] = []
    async with CloudStream(client, StartFrame(token_ids=prompt, max_tokens=12)) as stream:
        async for frame in stream:
            found += frame.token_ids
            if drafts:
                await stream.draft(len(prompt) + len(found), drafts)
    return found


async def test_answers_one_after_the_other_share_a_connection_and_are_what_they_are_alone(
    cloud_engine: CloudEngine,
) -> None:
    prompts = [[5, 6, 7], [9, 8], [5, 6, 7]]
    async with behind_proxy(cloud_engine) as (_, proxy, client):
        kept = [await answer(client, prompt, drafts=[1, 2, 3]) for prompt in prompts]
        assert proxy.connections == 1
    async with behind_proxy(cloud_engine, optimized=False) as (_, proxy, client):
        alone = [await answer(client, prompt) for prompt in prompts]
        assert proxy.connections == len(prompts), "with F4 off each has its own"
    assert kept == alone


async def test_a_client_may_ask_again_in_the_moment_of_the_end(cloud_engine: CloudEngine) -> None:
    async with behind_proxy(cloud_engine) as (_, proxy, client):
        for _ in range(50):
            async with CloudStream(client, StartFrame(token_ids=PROMPT, max_tokens=1)) as stream:
                assert [len(frame.token_ids) async for frame in stream] == [1]
        assert proxy.connections == 1


async def test_answers_at_the_same_time_never_share_one(cloud_engine: CloudEngine) -> None:
    async with behind_proxy(cloud_engine) as (_, proxy, client):
        first = await asyncio.gather(*(answer(client, PROMPT) for _ in range(4)))
        assert proxy.connections == 4
        assert await asyncio.gather(*(answer(client, PROMPT) for _ in range(4))) == first
        assert proxy.connections == 4


async def test_an_answer_that_was_left_early_is_not_kept(cloud_engine: CloudEngine) -> None:
    async with behind_proxy(cloud_engine) as (_, proxy, client):
        async with CloudStream(client, StartFrame(token_ids=PROMPT, max_tokens=200)) as stream:
            await anext(stream)
        assert len(client.idle_websockets) == 0
        await answer(client, PROMPT)
        assert proxy.connections == 2


async def test_a_connection_that_broke_while_it_was_kept_costs_nothing_but_a_new_one(cloud_engine: CloudEngine) -> None:
    async with behind_proxy(cloud_engine) as (_, proxy, client):
        whole = await answer(client, PROMPT)
        await proxy.cut()
        assert await answer(client, PROMPT) == whole
        assert proxy.connections == 2


async def test_a_server_that_stops_does_not_wait_for_kept_connections(cloud_engine: CloudEngine) -> None:
    async with behind_proxy(cloud_engine) as (server, _, client):
        await answer(client, PROMPT)
        assert len(client.idle_websockets) == 1
        server.drain_seconds = 60.0
        async with asyncio.timeout(30):
            await server.drain()


async def test_a_kept_connection_is_closed_when_nothing_more_is_asked(
    cloud_engine: CloudEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_route, "KEEP_SECONDS", 0.05)
    async with behind_proxy(cloud_engine) as (_, _, client):
        await answer(client, PROMPT)
        async with asyncio.timeout(30):
            while len(client.idle_websockets):
                await asyncio.sleep(0.01)


class Leaving(FakeCloud):
    """Closes a kept connection just as its next start frame arrives, so that the client cannot have noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 0
        self.always = False

    async def _stream(self, request: web.Request) -> web.WebSocketResponse:
        if self.always and self.starts:
            socket = await websocket(request)
            await socket.receive()
            await socket.close()
            return socket
        return await super()._stream(request)

    async def _answer(self, socket: web.WebSocketResponse, start: StartFrame) -> StartFrame | None:
        following = await super()._answer(socket, start)
        self.left += following is not None
        return None


@asynccontextmanager
async def leaving() -> AsyncIterator[tuple[Leaving, HTTPClient]]:
    cloud = Leaving()
    async with running(cloud.app(), drain_seconds=0) as server, HTTPClient(f"http://127.0.0.1:{server.port}") as client:
        yield cloud, client


async def test_a_server_that_leaves_as_the_start_comes_is_asked_anew_once() -> None:
    async with leaving() as (cloud, client):
        whole = await answer(client, PROMPT)
        assert await answer(client, PROMPT) == whole
        assert cloud.left == 1
        assert len(cloud.starts) == 2


async def test_a_server_that_breaks_a_new_connection_too_is_lost() -> None:
    async with leaving() as (cloud, client):
        await answer(client, PROMPT)
        cloud.always = True
        with pytest.raises(EndpointError):
            await answer(client, PROMPT)
