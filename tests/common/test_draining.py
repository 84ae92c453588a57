"""A server process that gets SIGTERM: what it still answers, what it refuses, and how it ends."""

import asyncio
import signal
from collections.abc import AsyncIterator

import aiohttp
import pytest

from cli.server_process import STOP_SECONDS
from common.config_values import ServerConfig
from common.errors import StartError
from common.http_server import FATAL, HTTPServer, make_app
from tests.support.small_server import SmallServer, small_server


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session:
        yield session


async def _waiting(server: SmallServer) -> None:
    """Returns when the server's handler of /wait has begun."""
    assert server.process.stdout is not None
    assert await asyncio.to_thread(server.process.stdout.readline) == "waiting\n"


async def _refused(client: aiohttp.ClientSession, url: str) -> None:
    """Returns when a new connection is refused."""
    async with asyncio.timeout(30):
        while True:
            try:
                async with aiohttp.ClientSession() as fresh, fresh.get(url + "/health"):
                    await asyncio.sleep(0.02)
            except aiohttp.ClientConnectorError:
                return


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_request_in_flight_is_answered_while_new_ones_are_refused(
    client: aiohttp.ClientSession, number: signal.Signals
) -> None:
    async with small_server() as server:
        asked = asyncio.create_task(client.get(server.url + "/wait/4"))
        await _waiting(server)
        server.signal(number)
        await _refused(client, server.url)
        assert not asked.done()
        assert (await asked).status == 200
        assert (await server.ended())[0] == 0


async def test_without_time_to_drain_the_request_in_flight_is_told_so(client: aiohttp.ClientSession) -> None:
    """The negative control of the test above."""
    async with small_server(drain_seconds=0) as server:
        asked = asyncio.create_task(client.get(server.url + "/wait/30"))
        await _waiting(server)
        server.signal()
        answer = await asked
        assert answer.status == 503
        assert (await answer.json())["error"]["code"] == "server_stopping"
        assert (await server.ended())[0] == 0


async def test_a_stream_in_flight_comes_to_its_end(client: aiohttp.ClientSession) -> None:
    async with small_server() as server, client.get(server.url + "/events/1") as answer:
        assert b"first" in await answer.content.readline()
        server.signal()
        assert b"[DONE]" in await answer.content.read()
        assert (await server.ended())[0] == 0


async def test_a_stream_that_is_cut_at_the_end_of_the_drain_says_so(client: aiohttp.ClientSession) -> None:
    async with small_server(drain_seconds=0.2) as server, client.get(server.url + "/events/30") as answer:
        assert b"first" in await answer.content.readline()
        server.signal()
        assert b"server_stopping" in await answer.content.read()
        assert (await server.ended())[0] == 0


async def test_idle_connections_do_not_hold_the_server_and_are_told_that_it_stops(
    client: aiohttp.ClientSession,
) -> None:
    async with small_server(drain_seconds=60) as server, aiohttp.ClientSession() as waiting:
        async with client.get(server.url + "/ready") as answer:
            assert answer.status == 200
            await answer.read()  # else the connection is closed where the body has not come yet
        asked = asyncio.create_task(waiting.get(server.url + "/wait/2"))
        await _waiting(server)
        server.signal()
        await _refused(client, server.url)
        async with client.get(server.url + "/ready") as answer:  # over the connection of before
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == "server_stopping"
        assert (await asked).status == 200
        assert (await server.ended())[0] == 0


async def test_a_second_signal_ends_the_drain_at_once(client: aiohttp.ClientSession) -> None:
    async with small_server(drain_seconds=3600) as server:
        asked = asyncio.create_task(client.get(server.url + "/wait/3600"))
        await _waiting(server)
        server.signal()
        await _refused(client, server.url)
        server.signal()
        assert (await asked).status == 503
        assert (await server.ended())[0] == 0


@pytest.mark.parametrize("query", ["", "?polite=1"])
async def test_a_websocket_is_closed_properly_when_the_server_stops(client: aiohttp.ClientSession, query: str) -> None:
    """A handler that ends by itself does not delay the drain; any other WebSocket is closed after it."""
    async with (
        small_server(drain_seconds=3600 if query else 0.3) as server,
        client.ws_connect(server.url + "/socket" + query) as socket,
    ):
        await socket.send_bytes(b"x")
        assert await socket.receive_bytes() == b"x"
        server.signal()
        message = await socket.receive()
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.GOING_AWAY)
        assert (await server.ended())[0] == 0


def test_the_supervisor_waits_longer_than_a_server_drains() -> None:
    assert ServerConfig().drain_seconds + 10 < STOP_SECONDS


async def test_an_owner_that_fails_ends_the_server_with_its_error_unless_it_stops_already() -> None:
    app = make_app()
    running = asyncio.create_task(HTTPServer(app, "127.0.0.1", 0).run())
    async with asyncio.timeout(10):
        while FATAL not in app:
            await asyncio.sleep(0.01)
    app[FATAL].set_exception(StartError("no model"))
    with pytest.raises(StartError, match="no model"):
        await running
