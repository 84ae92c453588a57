"""The spans of a server's requests and of calls to a cloud."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
from aiohttp import web

from cli.demo import free_ports
from common.cloud_client.pool import CloudPool
from common.cloud_client.verifier import CloudVerifier
from common.config_schema import CommunicationConfig, HttpClientConfig
from common.errors import EndpointError, EngineError, RequestError
from common.http.client import HTTPClient
from common.http.messages import read, reply, websocket
from common.http_server import HTTPServer, make_app
from common.tracing.export import exported
from common.types import GREEDY
from tests.support.otlp_receiver import ReceivedSpan, Receiver

SECRET = "a prompt that is nobody's business"


async def _echo(request: web.Request) -> web.Response:
    return reply(request, await read(request, dict[str, str]))


async def _refuse(request: web.Request) -> web.Response:
    raise RequestError(SECRET)


async def _fail(request: web.Request) -> web.Response:
    raise EngineError(SECRET)


async def _socket(request: web.Request) -> web.StreamResponse:
    socket = await websocket(request)
    await socket.close()
    return socket


@asynccontextmanager
async def server(relay_to: str = "") -> AsyncIterator[str]:
    async def relay(request: web.Request) -> web.Response:
        async with HTTPClient(relay_to) as onward:
            return reply(request, await onward.post("/echo", {"text": SECRET}, dict))

    app = make_app()
    app.router.add_post("/echo", _echo)
    app.router.add_post("/relay", relay)
    app.router.add_get("/refused", _refuse)
    app.router.add_get("/broken/{part}", _fail)
    app.router.add_get("/socket", _socket)
    made = HTTPServer(app, "127.0.0.1", 0)
    await made.start()
    try:
        yield f"http://127.0.0.1:{made.port}"
    finally:
        await made.stop()


async def test_a_request_is_a_span_with_its_route_and_outcome_and_nothing_of_its_text(receiver: Receiver) -> None:
    with exported("server", enabled=True):
        async with server() as url, aiohttp.ClientSession() as http:
            await http.post(f"{url}/echo?{SECRET}", json={"text": SECRET}, headers={"X-Request-Id": "mine"})
            await http.get(f"{url}/refused")
            await http.get(f"{url}/broken/{SECRET}")
    spans = {one.name: one for one in receiver.spans}
    assert {name: (one.kind, one.failed) for name, one in spans.items()} == {
        "POST /echo": ("server", False),
        "GET /refused": ("server", False),
        "GET /broken/{part}": ("server", True),
    }
    assert [one.attributes["http.response.status_code"] for one in receiver.spans] == [200, 400, 503]
    assert spans["POST /echo"].attributes["edgecloud.request_id"] == "mine"
    assert spans["GET /refused"].attributes["edgecloud.outcome"] == "refused"
    assert SECRET not in repr(receiver.spans)


async def test_probes_and_websockets_are_no_spans(receiver: Receiver) -> None:
    with exported("server", enabled=True):
        async with server() as url, aiohttp.ClientSession() as http:
            await http.get(f"{url}/health")
            await http.get(f"{url}/metrics")
            async with http.ws_connect(f"{url}/socket"):
                pass
    assert receiver.spans == []


async def test_a_call_to_another_server_is_in_the_same_trace(receiver: Receiver) -> None:
    with exported("server", enabled=True):
        async with server() as cloud, server(relay_to=cloud) as edge, aiohttp.ClientSession() as http:
            for _ in range(2):  # over one connection
                await http.post(f"{edge}/relay", json={})
    traces: dict[str, list[ReceivedSpan]] = {}
    for one in receiver.spans:
        traces.setdefault(one.trace, []).append(one)
    assert len(traces) == 2
    for inner, outer in traces.values():
        assert (inner.name, inner.parent) == ("POST /echo", outer.id) and (outer.name, outer.parent) == (
            "POST /relay",
            "",
        )


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_to_a_cloud_that_is_lost_has_failed_and_names_it(receiver: Receiver, streamed: bool) -> None:
    (port,) = free_ports(1)
    http = HttpClientConfig(max_retries=0)
    config = CommunicationConfig(cloud_endpoint=f"http://127.0.0.1:{port}", http_client=http)
    with exported("server", enabled=True):
        async with CloudPool(config) as clouds:
            verifier = CloudVerifier(clouds)
            with suppress(EndpointError):
                if streamed:
                    async with verifier.stream([1], 8):
                        pass
                else:
                    await verifier.verify([1], [2, 3], GREEDY, 1)
    (call,) = receiver.spans
    assert (call.name, call.kind, call.failed) == ("stream" if streamed else "verify", "client", True)
    assert (call.attributes["server.address"], call.attributes["server.port"]) == ("127.0.0.1", port)
    assert call.attributes["error.type"] == "NotListening"
