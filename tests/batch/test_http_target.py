"""What a batch makes of a server's replies, and of a server that is not there."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web

from common.batch import http_target
from common.batch.http_target import HttpTarget
from common.batch.lines import BatchLine
from common.errors import EndpointError
from common.http.client import HTTPClient
from common.http.retry import ConnectionBroken, Unreachable
from common.http_server import HTTPServer, make_app
from common.protocol import codec

NOBODY = "http://127.0.0.1:1"


async def full(request: web.Request) -> web.Response:
    text = '{\n  "error": {"message": "no\\nroom"}\n}'
    return web.Response(status=429, text=text, headers={"Retry-After": "7"}, content_type=codec.JSON)


async def page(request: web.Request) -> web.Response:
    return web.Response(status=502, text="<html>", content_type="text/html")


async def cut(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client() -> AsyncIterator[HTTPClient]:
    app = make_app()
    for route, handler in {"/full": full, "/page": page, "/cut": cut}.items():
        app.router.add_post(route, handler)
    server = HTTPServer(app, "127.0.0.1", 0)
    await server.start()
    async with HTTPClient(f"http://127.0.0.1:{server.port}") as made:
        yield made
    await server.stop()


def line(route: str) -> BatchLine:
    return BatchLine(0, "a", route, b"{}")


async def test_a_refusal_is_a_reply_on_one_line_with_the_time_to_wait(client: HTTPClient) -> None:
    attempt = await HttpTarget(client).ask(line("/full"))
    assert (attempt.reply.status_code, attempt.retry_after) == (429, 7.0)
    assert bytes(attempt.reply.body) == b'{"error":{"message":"no\\nroom"}}'
    assert attempt.reply.request_id


@pytest.mark.parametrize(("route", "kind"), [("/page", EndpointError), ("/cut", ConnectionBroken)])
async def test_a_reply_that_is_none_is_no_server_that_is_away(
    route: str, kind: type[EndpointError], client: HTTPClient
) -> None:
    with pytest.raises(kind) as caught:
        await HttpTarget(client).ask(line(route))
    assert not isinstance(caught.value, Unreachable)


async def test_a_server_that_is_away_is_waited_for_and_given_up_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_target, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(http_target, "LOST_SECONDS", 0.03)
    async with HTTPClient(NOBODY) as nobody:
        target = HttpTarget(nobody)
        with pytest.raises(Unreachable):
            await target.ask(line("/full"))
        with pytest.raises(EndpointError, match="continue with --resume"):
            await target.wait_until_back()
