"""What the pages of foreign origins cannot do with a server that their visitor can reach."""

import aiohttp
import pytest

from tests.support.small_server import small_server

PAGE = "https://page.example"
EVIL = "https://evil.example"
JSON = {"Content-Type": "application/json"}
REBOUND = "evil.example:8080"


async def opens_a_socket(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> bool:
    try:
        async with session.ws_connect(url + "/socket", headers=headers) as socket:
            await socket.send_bytes(b"token?")
            return await socket.receive_bytes() == b"token?"
    except aiohttp.WSServerHandshakeError as refusal:
        return refusal.status != 403


async def test_a_page_of_a_foreign_origin_opens_no_websocket() -> None:
    async with small_server(cors_origins=[PAGE]) as server, aiohttp.ClientSession() as session:
        opened = {
            origin: await opens_a_socket(session, server.url, {"Origin": origin} if origin else {})
            for origin in (EVIL, "null", "http://127.0.0.1:1", PAGE, server.url, "")
        }
    assert opened == {EVIL: False, "null": False, "http://127.0.0.1:1": False, PAGE: True, server.url: True, "": True}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_body_that_needs_no_preflight_is_taken_from_no_foreign_page(kind: str) -> None:
    async with small_server(cors_origins=[PAGE]) as server, aiohttp.ClientSession() as session:

        async def status(**headers: str) -> int:
            own = {"Content-Type": kind} if kind else {}
            skipped = [] if kind else ["Content-Type"]
            async with session.post(
                server.url + "/typed", data=b"{}", headers=own | headers, skip_auto_headers=skipped
            ) as answer:
                return answer.status

        assert await status(Origin=EVIL) == await status(Origin="null") == 403
        assert await status(Origin=PAGE) == await status() == 200
        async with session.post(server.url + "/typed", data=b"{}", headers=JSON | {"Origin": EVIL}) as answer:
            assert answer.status == 200, "a browser has asked before it sends this, and was not allowed"


async def test_a_loopback_server_takes_no_name_that_a_page_can_point_to_it() -> None:
    async with small_server(cors_origins=[PAGE]) as server, aiohttp.ClientSession() as session:

        async def status(host: str, path: str = "/ready") -> int:
            async with session.get(server.url + path, headers={"Host": host, "Origin": f"http://{host}"}) as answer:
                return answer.status

        for host in (REBOUND, "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example."):
            assert await status(host) == await status(host, "/health") == 403
        for host in (
            "localhost",
            "localhost:8080",
            "LOCALHOST.",
            "app.localhost:1",
            "127.0.0.1",
            "[::1]:80",
            "10.1.2.3",
        ):
            assert await status(host) == 200
        assert await status("page.example") == 200, "the config names it"


async def test_a_server_for_the_network_and_one_for_all_pages_take_any_name() -> None:
    for keys in ({"host": "0.0.0.0"}, {"cors_origins": ["*"]}):
        async with small_server(**keys) as server, aiohttp.ClientSession() as session:
            async with session.get(server.url + "/ready", headers={"Host": "edge.example"}) as answer:
                assert answer.status == 200
            open_to_pages = "cors_origins" in keys
            assert await opens_a_socket(session, server.url, {"Origin": EVIL}) == open_to_pages
