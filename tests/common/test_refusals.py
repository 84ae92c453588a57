"""A full server says when to come again, cheaply: what it refuses costs it no line of its log each."""

import re
import select
import socket
from contextlib import ExitStack
from pathlib import Path

import aiohttp

from cli.demo import free_ports
from common.http.middleware import REFUSAL_SECONDS, RefusalLines
from common.http_server import BACKLOG, HTTPServer, make_app
from experiments.plain_requests import BROKEN, PlainClient
from tests.support.manual_clock import ManualClock
from tests.support.small_server import small_server

SYSTEM = Path("/proc/sys/net/core/somaxconn")
CLIENTS = min(BACKLOG, int(SYSTEM.read_text()) if SYSTEM.exists() else 128) // 2
"""Half of those that may wait: the system has a limit, too."""


async def test_an_overloaded_server_says_when_to_come_again() -> None:
    async with small_server() as server, aiohttp.request("GET", f"{server.url}/overloaded") as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "7")


def test_of_many_refusals_one_a_second_has_a_line_which_counts_the_others() -> None:
    clock = ManualClock(1000.0)
    lines, told = RefusalLines(clock), []
    for _ in range(100):
        told += [] if (untold := lines.untold()) is None else [untold]
        clock.now += REFUSAL_SECONDS / 16  # which binary fractions hold exactly
    assert told == [0, 15, 15, 15, 15, 15, 15]


async def test_a_flood_of_refusals_does_not_fill_the_log_and_is_counted() -> None:
    flood = 300
    async with small_server() as server, aiohttp.ClientSession(server.url) as client:
        for _ in range(flood):
            async with client.get("/overloaded") as answer:
                assert answer.status == 429
        async with client.get("/metrics", params={"name[]": "edgecloud_http_requests_total"}) as page:
            counted = re.search(r'outcome="overloaded"[^}]*} ([\d.]+)', await page.text())
        lines = [line for line in server.log().splitlines() if " 429 " in line]
    assert counted and float(counted[1]) == flood
    assert 1 <= len(lines) < flood / 2


async def test_plain_clients_count_what_they_are_told_and_use_their_connections_again() -> None:
    async with small_server() as server, PlainClient(server.url) as client:
        typed, wrong = client.post("/typed", {"text": "x" * 5000}), client.post("/typed", {"text": 3})
        assert {reply.status for reply in await client.in_turns(3, [typed], 0.2)} == {200}
        opened = len(client._opened)
        assert opened <= 3
        replies = await client.at_rate(200.0, [typed, wrong], 0.3)
        assert {reply.status for reply in replies} == {200, 400}
        assert all(reply.seconds >= reply.late >= 0 for reply in replies)


async def test_plain_clients_say_so_when_a_connection_breaks() -> None:
    async with PlainClient(f"http://127.0.0.1:{free_ports(1)[0]}") as nobody:
        assert (await nobody.send(nobody.post("/typed", {}), 0.0)).status == BROKEN
    async with small_server() as server, PlainClient(server.url) as client:
        request = client.post("/typed", {})
        assert (await client.send(request, 0.0)).status == 200
        server.process.kill()
        await server.ended()
        assert [(await client.send(request, 0.0)).status for _ in range(2)] == [BROKEN, BROKEN]


async def test_clients_that_come_at_once_are_connected_also_while_the_server_does_not_look() -> None:
    """Without a long queue for them, some are connected by their second packet, which is sent a second later."""
    server = HTTPServer(make_app(), "127.0.0.1", 0)
    await server.start()
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket()) for _ in range(CLIENTS)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", server.port))
        # This thread is the server's, too: it takes none of them before the next `await`.
        assert len(select.select([], clients, [], 0)[1]) == len(clients)
    await server.stop()
