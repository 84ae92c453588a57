"""HTTP client and server on real ports: error objects, request ids, typed bodies, cancellation, lost connections."""

import asyncio
import io
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from common.cloud_client.pool import CloudPool
from common.cloud_client.verifier import CloudVerifier
from common.config_schema import CommunicationConfig, HttpClientConfig
from common.errors import (
    ConfigError,
    ContextLengthError,
    EndpointError,
    NotFoundError,
    OverloadedError,
    PrefixUnknown,
    RequestError,
    StartError,
)
from common.http import messages
from common.http.client import HTTPClient
from common.http.in_flight import InFlight
from common.http.messages import BODY_LIMIT, REQUEST_ID, read, reply, stream
from common.http.traffic import Traffic
from common.http_server import HTTPServer, make_app
from common.protocol import codec
from common.protocol.prefix_hash import prefix_hash
from common.types import GREEDY, VerifyRequest, VerifyResponse
from experiments.harness.delay_proxy import DelayProxy
from tests.waiting import until


class Echo(msgspec.Struct, forbid_unknown_fields=True):
    text: str


class Backend:
    """A server with handlers for the tests; `left` is set when a waiting handler was cancelled."""

    def __init__(self) -> None:
        self.waits = asyncio.Event()
        self.left = asyncio.Event()
        self.content_types: list[str] = []
        self.request_ids: list[str] = []
        self.sessions: dict[str, list[int]] = {}
        self.asked: list[VerifyRequest] = []

    def app(self) -> web.Application:
        app = make_app()
        app.router.add_post("/echo", self.echo)
        app.router.add_post("/wait", self.wait)
        app.router.add_post("/fail", self.fail)
        app.router.add_post("/stream", self.stream)
        app.router.add_post("/overloaded", self.overloaded)
        app.router.add_post("/too-long", self.too_long)
        app.router.add_post("/verify", self.verify)
        return app

    async def echo(self, request: web.Request) -> web.Response:
        self.content_types.append(request.content_type)
        self.request_ids.append(request[REQUEST_ID])
        return reply(request, await read(request, Echo))

    async def wait(self, request: web.Request) -> web.Response:
        self.waits.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.left.set()
            raise
        return reply(request, {})

    async def fail(self, request: web.Request) -> web.Response:
        raise ZeroDivisionError("a fault of our own")

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """One event, then what the query `then` asks for: an error, the end, or a long wait."""

        async def events() -> AsyncGenerator[bytes, None]:
            try:
                yield b'data: {"text":"first"}\n\n'
                if request.query["then"] == "ours":
                    raise OverloadedError("no room")
                if request.query["then"] == "fault":
                    raise ZeroDivisionError("a fault of our own")
                if request.query["then"] == "end":
                    return
                await asyncio.sleep(60)
            finally:
                self.left.set()

        return await stream(request, events())

    async def overloaded(self, request: web.Request) -> web.Response:
        raise OverloadedError("no room")

    async def too_long(self, request: web.Request) -> web.Response:
        raise ContextLengthError("too long", param="prompt")

    async def verify(self, request: web.Request) -> web.Response:
        """Accepts every draft and adds token 7; holds sessions as the cloud does."""
        body = await read(request, VerifyRequest)
        self.asked.append(body)
        held = self.sessions.get(body.session, [])[: body.prefix_length]
        if prefix_hash(held) != body.prefix_hash:
            raise PrefixUnknown("prefix unknown")
        drawn = [*body.draft_token_ids, 7]
        self.sessions[body.session] = held + body.new_token_ids + drawn
        answer = VerifyResponse(token_ids=drawn, accepted=len(drawn) - 1, drafted=len(drawn) - 1)
        return reply(request, answer)


@pytest.fixture
async def backend() -> AsyncIterator[tuple[Backend, str]]:
    handlers = Backend()
    server = HTTPServer(handlers.app(), "127.0.0.1", 0)
    await server.start()
    yield handlers, f"http://127.0.0.1:{server.port}"
    await server.stop()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/nowhere", b"", 404, "not_found"),
        ("GET", "/echo", b"", 405, None),
        ("POST", "/echo", b"{", 400, None),
        ("POST", "/echo", b'{"text": 3}', 400, None),
        ("POST", "/echo", b'{"text": "x", "more": 1}', 400, None),
        ("POST", "/echo", b'{"text": NaN}', 400, None),
        ("POST", "/echo", b'{"text": "\\ud800"}', 400, None),
        ("POST", "/echo", b"[" * 100_000, 400, None),
        ("POST", "/echo", b"x" * (BODY_LIMIT + 1), 413, None),
        ("POST", "/fail", b"", 500, None),
        ("POST", "/overloaded", b"", 429, "overloaded"),
        ("POST", "/too-long", b"", 400, "context_length_exceeded"),
    ],
)
async def test_every_failure_is_openais_error_object(
    backend: tuple[Backend, str], method: str, path: str, body: bytes, status: int, code: str | None
) -> None:
    headers = {"Content-Type": codec.JSON, "X-Request-Id": "mine"}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, backend[1] + path, data=io.BytesIO(body), headers=headers) as response,
    ):
        error = (await response.json())["error"]
        assert response.status == status
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == code
        assert "division" not in error["message"]
        assert response.headers["X-Request-Id"] == "mine"
        assert ("Retry-After" in response.headers) == (status == 429)


async def test_a_wrong_field_is_named_by_its_path(backend: tuple[Backend, str]) -> None:
    async with HTTPClient(backend[1]) as client:
        with pytest.raises(RequestError) as failure:
            await client.post("/echo", {"text": 3}, Echo)
    assert failure.value.param == "text"


@pytest.mark.parametrize("optimized", [True, False])
async def test_both_encodings_carry_the_same_values(backend: tuple[Backend, str], optimized: bool) -> None:
    async with HTTPClient(backend[1], HttpClientConfig(optimized=optimized)) as client:
        assert await client.post("/echo", Echo("héllo"), Echo) == Echo("héllo")
    assert backend[0].content_types == [codec.MSGPACK if optimized else codec.JSON]


@pytest.mark.parametrize(
    ("text", "options", "compressed"),
    [
        ("a" * 4000, {}, True),
        ("a" * 400, {}, False),
        ("a" * 4000, {"compression": "none"}, False),
        ("a" * 4000, {"optimized": False}, False),
    ],
    ids=["large", "small", "switched off", "F4 off"],
)
async def test_large_bodies_travel_compressed_unless_that_is_switched_off(
    backend: tuple[Backend, str], text: str, options: dict[str, Any], compressed: bool
) -> None:
    traffic = Traffic()
    async with HTTPClient(backend[1], HttpClientConfig(**options)) as client:
        assert await client.post("/echo", Echo(text), Echo, traffic) == Echo(text)
    assert (traffic.bytes_up < 100) == compressed
    assert traffic.bytes_down > len(text)


async def test_connections_are_kept_unless_f4_is_off(backend: tuple[Backend, str]) -> None:
    for optimized, wanted in ((True, 1), (False, 5)):
        async with (
            DelayProxy("127.0.0.1", int(backend[1].rpartition(":")[2])) as proxy,
            HTTPClient(proxy.url, HttpClientConfig(optimized=optimized)) as client,
        ):
            for _ in range(5):
                await client.post("/echo", Echo("x"), Echo)
            assert proxy.connections == wanted


async def test_an_answer_that_is_nonsense_is_the_servers_fault(backend: tuple[Backend, str]) -> None:
    async with HTTPClient(backend[1]) as client:
        with pytest.raises(EndpointError, match="answers nonsense"):
            await client.post("/echo", Echo("x"), VerifyResponse)


@pytest.mark.parametrize("url", ["localhost:8081", "", "http://me:sesame@cloud"])
def test_a_client_of_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        HTTPClient(url)
    assert "sesame" not in error.value.message


async def test_a_client_that_leaves_cancels_its_handler(backend: tuple[Backend, str]) -> None:
    async with HTTPClient(backend[1]) as client:
        leaving = asyncio.create_task(client.post("/wait", {}, Echo))
        await asyncio.wait_for(backend[0].waits.wait(), 30)
        leaving.cancel()
    async with asyncio.timeout(30):
        await backend[0].left.wait()


async def test_a_call_that_the_server_does_not_work_on_is_given_up_at_its_deadline(
    backend: tuple[Backend, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InFlight, "works_on", lambda *_: False)
    async with HTTPClient(backend[1], HttpClientConfig(timeout=0.5)) as client:
        with pytest.raises(EndpointError, match=r"did not answer within 0\.5 s"):
            await client.post("/wait", {}, Echo)
    async with asyncio.timeout(10):
        await backend[0].left.wait()


async def test_a_server_knows_the_calls_that_it_works_on_and_no_others(backend: tuple[Backend, str]) -> None:
    async with aiohttp.ClientSession(backend[1]) as session:

        async def status(call: str) -> int:
            async with session.get(f"/calls/{call}") as response:
                return response.status

        assert await status("mine") == 404
        waiting = asyncio.create_task(session.post("/wait", json={}, headers={"X-Call-Id": "mine"}))
        async with asyncio.timeout(10):
            while await status("mine") != 200:
                await asyncio.sleep(0.01)
        assert await status("another") == 404
        waiting.cancel()
        async with asyncio.timeout(10):
            while await status("mine") != 404:
                await asyncio.sleep(0.01)


async def test_a_silent_stream_carries_comments_which_keep_its_client_waiting(
    backend: tuple[Backend, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def raw(seconds: float) -> bytes:
        async with aiohttp.ClientSession() as session, session.post(backend[1] + "/stream?then=wait") as response:
            await response.content.readuntil(b"\n\n")
            async with asyncio.timeout(seconds):
                return await response.content.readuntil(b"\n\n")

    async def second_event() -> None:
        async with HTTPClient(backend[1], HttpClientConfig(timeout=0.5)) as client:
            events = aiter(client.events("/stream?then=wait", {}))
            await anext(events)
            async with asyncio.timeout(1.5):
                await anext(events)

    with pytest.raises(TimeoutError):
        await raw(0.5)
    with pytest.raises(EndpointError, match=r"did not answer within 0\.5 s"):
        await second_event()
    monkeypatch.setattr(messages, "KEEPALIVE_SECONDS", 0.05)
    assert (await raw(30)).startswith(b":")
    with pytest.raises(TimeoutError):  # the test's, not the client's
        await second_event()


@pytest.mark.parametrize(("then", "message"), [("ours", "no room"), ("fault", "internal error")])
async def test_a_failure_after_the_first_event_is_an_error_event(
    backend: tuple[Backend, str], then: str, message: str
) -> None:
    async with HTTPClient(backend[1]) as client:
        events = aiter(client.events(f"/stream?then={then}", {}))
        assert codec.decode(await anext(events), Echo) == Echo("first")
        with pytest.raises(EndpointError, match=message):
            await anext(events)


async def test_a_client_that_leaves_a_stream_closes_it(backend: tuple[Backend, str]) -> None:
    async with aiohttp.ClientSession() as session, session.post(backend[1] + "/stream?then=wait") as response:
        assert b"first" in await response.content.readline()
        assert not backend[0].left.is_set()
        response.close()
        async with asyncio.timeout(10):
            await backend[0].left.wait()


async def read_whole(session: aiohttp.ClientSession, url: str) -> None:
    async with session.post(url) as response:
        await response.read()


@pytest.mark.parametrize("fails", ["write", "write_eof"])
async def test_a_client_that_has_left_is_no_fault_of_ours(
    backend: tuple[Backend, str], fails: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many leave after the last event, before the body has ended."""

    async def gone(*_: object) -> None:
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    async with aiohttp.ClientSession() as session:
        with monkeypatch.context() as patched, suppress(aiohttp.ClientError, TimeoutError):
            patched.setattr(web.StreamResponse, fails, gone)
            asking = asyncio.create_task(read_whole(session, backend[1] + "/stream?then=end"))
            await asyncio.wait_for(backend[0].left.wait(), 30)
            await asyncio.sleep(0.2)  # in which its failure would be logged
            asking.cancel()
            await asyncio.wait([asking])
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_stream_whose_client_leaves_after_the_last_event_counts_as_answered(
    backend: tuple[Backend, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def left(*_: object) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        handler.cancel()  # as aiohttp does for a client that disconnects
        await asyncio.sleep(0)

    caplog.set_level("INFO")
    async with aiohttp.ClientSession() as session:
        with monkeypatch.context() as patched, suppress(aiohttp.ClientError, TimeoutError):
            patched.setattr(web.StreamResponse, "write_eof", left)
            asking = asyncio.create_task(read_whole(session, backend[1] + "/stream?then=end"))
            await until(lambda: "POST /stream" in caplog.text)
            asking.cancel()
            await asyncio.wait([asking])
    (line,) = [one.getMessage() for one in caplog.records if "POST /stream" in one.getMessage()]
    assert "POST /stream 200 ok" in line


async def test_refusals_come_back_as_the_error_that_was_raised(backend: tuple[Backend, str]) -> None:
    async with HTTPClient(backend[1]) as client:
        with pytest.raises(ContextLengthError):
            await client.post("/too-long", {}, Echo)
        with pytest.raises(NotFoundError):
            await client.post("/nowhere", {}, Echo)
        with pytest.raises(EndpointError, match="answered 429"):
            await client.post("/overloaded", {}, Echo)
        with pytest.raises(EndpointError, match="answered 500"):
            await client.post("/fail", {}, Echo)


async def test_what_a_request_asks_of_another_server_carries_its_id(backend: tuple[Backend, str]) -> None:
    app = make_app()

    async def relay(request: web.Request) -> web.Response:
        async with HTTPClient(backend[1]) as client, asyncio.TaskGroup() as group:
            asked = group.create_task(client.post("/echo", Echo("x"), Echo))
        return reply(request, await asked)

    app.router.add_post("/relay", relay)
    server = HTTPServer(app, "127.0.0.1", 0)
    await server.start()
    async with aiohttp.ClientSession(headers={"X-Request-Id": "from-afar"}) as session:
        await session.post(f"http://127.0.0.1:{server.port}/relay")
    await server.stop()
    assert backend[0].request_ids == ["from-afar"]


async def test_a_server_that_is_not_there_is_tried_again_and_then_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    traffic = Traffic()
    async with HTTPClient(url, HttpClientConfig(max_retries=2)) as client:
        with pytest.raises(EndpointError, match=f"cannot reach {url}"):
            await client.post("/echo", Echo("x"), Echo, traffic)
    assert traffic.calls == traffic.failures == 3


async def test_a_port_in_use_is_one_clear_error(backend: tuple[Backend, str]) -> None:
    port = int(backend[1].rpartition(":")[2])
    with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{port}"):
        await HTTPServer(make_app(), "127.0.0.1", port, "second server").start()


async def test_only_what_the_cloud_does_not_hold_travels_and_a_lost_prefix_is_sent_again(
    backend: tuple[Backend, str],
) -> None:
    cloud, url = backend
    async with CloudPool(CommunicationConfig(cloud_endpoint=url)) as clouds:
        verifier = CloudVerifier(clouds)
        committed = list(range(100, 150))
        committed += (await verifier.verify(committed, [1, 2], GREEDY, 1)).token_ids
        committed += [5]  # committed by the edge itself
        committed += (await verifier.verify(committed, [3], GREEDY, 1)).token_ids
        assert [(r.prefix_length, len(r.new_token_ids)) for r in cloud.asked] == [(0, 50), (53, 1)]
        cloud.sessions.clear()
        await verifier.verify(committed, [4], GREEDY, 1)
        assert [(r.prefix_length, len(r.new_token_ids)) for r in cloud.asked[2:]] == [(56, 0), (0, 56)]
        assert next(iter(cloud.sessions.values())) == [*committed, 4, 7]
        assert verifier.traffic.calls == 4
        assert verifier.traffic.bytes_up > 0


async def test_with_f4_off_the_client_sends_the_whole_prefix_every_round(backend: tuple[Backend, str]) -> None:
    cloud, url = backend
    plain = HttpClientConfig(optimized=False)
    async with CloudPool(CommunicationConfig(cloud_endpoint=url, http_client=plain)) as clouds:
        verifier = CloudVerifier(clouds)
        committed = [1, 2, 3]
        committed += (await verifier.verify(committed, [4], GREEDY, 1)).token_ids
        await verifier.verify(committed, [4], GREEDY, 1)
    assert [r.prefix_length for r in cloud.asked] == [0, 0]
    assert [len(r.new_token_ids) for r in cloud.asked] == [3, 5]
