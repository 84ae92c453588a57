"""`GET /stream` over real HTTP: exact tokens, refusals that name the field, nothing left of a client that has left."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from aiohttp import WSMsgType, web

from cloud.engine.engine import CloudEngine
from cloud.routes import stream as stream_route
from cloud.routes.stream import DRAFT_CHANNEL, Peer, StreamRoute
from cloud.verify.continuous import ContinuousAnswer
from cloud.verify.round import VerifyRound
from cloud.verify.stateless import verify
from cloud.websocket import ClientLeftError, ClientSocket
from common.cloud_client.stream import CloudStream
from common.config_schema import HttpClientConfig
from common.config_values import Secret, ServerConfig
from common.errors import ContextLengthError, EndpointError, OverloadedError, RequestError
from common.http import messages
from common.http.client import HTTPClient
from common.http_server import HTTPServer, make_app
from common.protocol.stream_frames import LONGEST_DRAFT, EndFrame, StartFrame, TokensFrame
from common.types import GREEDY, Sampling
from experiments.harness.delay_proxy import DelayProxy
from tests.conftest import CLOUD_CONTEXT

pytestmark = pytest.mark.asyncio(loop_scope="session")


class SlowEngine:
    """A fake engine that never finishes; `left` is set when its one generation is closed."""

    max_model_len = 100
    vocab_size = 50

    def __init__(self, first: bool = False) -> None:
        self.begun, self.left = asyncio.Event(), asyncio.Event()
        self._first = first

    async def generate(self, *arguments: object) -> AsyncGenerator[Any, None]:
        self.salt = arguments[-1]
        self.begun.set()
        try:
            if self._first:
                answer = SimpleNamespace(token_ids=[1], logprobs=None, finish_reason=None)
                yield SimpleNamespace(outputs=[answer], finished=False, kv_transfer_params={"drafts": (1, 0, 0, 0)})
            await asyncio.sleep(3600)
        finally:
            self.left.set()


@asynccontextmanager
async def serving(route: StreamRoute, config: ServerConfig | None = None) -> AsyncIterator[HTTPServer]:
    app = make_app(config)
    route.add_to(app)
    server = HTTPServer(app, "127.0.0.1", 0)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def slow(engine: SlowEngine) -> StreamRoute:
    return StreamRoute(cast(CloudEngine, engine))


@pytest_asyncio.fixture(loop_scope="session")
async def url(cloud_engine: CloudEngine) -> AsyncIterator[str]:
    async with serving(StreamRoute(cloud_engine)) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest_asyncio.fixture(loop_scope="session")
async def client(url: str) -> AsyncIterator[HTTPClient]:
    async with HTTPClient(url) as made:
        yield made


async def streamed(
    client: HTTPClient, prompt: list[int], right: Sequence[int] = (), **options: Any
) -> tuple[list[int], EndFrame]:
    """A stream to its end; the next tokens of `right`, the whole sequence, are sent as drafts."""
    ids: list[int] = []
    async with CloudStream(client, StartFrame(**{"token_ids": prompt, "max_tokens": 40, **options})) as stream:
        async for frame in stream:
            assert frame.position == len(prompt) + len(ids)
            ids += frame.token_ids
            if drafted := right[len(prompt) + len(ids) :][:16]:
                await stream.draft(len(prompt) + len(ids), drafted)
    assert stream.end is not None
    return ids, stream.end


@pytest.mark.parametrize("optimized", [True, False], ids=["MessagePack", "JSON"])
async def test_a_stream_gives_the_clouds_own_answer_with_and_without_drafts(
    cloud_engine: CloudEngine, url: str, optimized: bool
) -> None:
    prompt = list(cloud_engine.tokenizer.encode("Explain quantum computing"))
    plain = (await verify(cloud_engine, VerifyRound(prompt, [], GREEDY, 40))).token_ids
    async with HTTPClient(url, HttpClientConfig(optimized=optimized)) as client:
        alone, end = await streamed(client, prompt)
        drafted, drafted_end = await streamed(client, prompt, prompt + plain)
        assert client.traffic.bytes_up > 0
        assert client.traffic.bytes_down > 0
    assert alone == drafted == plain
    assert (end.drafted, end.steps) == (0, 40)
    assert drafted_end.accepted > 0
    assert drafted_end.finish_reason == end.finish_reason == "length"


async def test_a_stream_may_last_longer_than_one_call(url: str) -> None:
    async with (
        HTTPClient(url, HttpClientConfig(timeout=1.0)) as client,
        CloudStream(client, StartFrame(token_ids=[5, 6], max_tokens=200, sampling=HOT)) as stream,
    ):
        frames = []
        async for frame in stream:
            frames.append(frame)
            if len(frames) == 1:
                await asyncio.sleep(1.5)
    assert stream.end is not None


HOT = Sampling(temperature=2.0)
START = {"type": "start", "token_ids": [5, 6], "max_tokens": 200, "sampling": {"temperature": 2.0}}
DRAFT = {"type": "draft", "position": 3, "token_ids": [1]}


@pytest.mark.parametrize(
    ("frames", "param"),
    [
        ([b"{"], None),
        ([b"[" * 100_000], None),
        ([b"\xc1"], None),
        ([{**START, "more": 1}], None),
        ([{**START, "token_ids": []}], "token_ids"),
        ([{**START, "token_ids": [-1]}], "token_ids"),
        ([{**START, "token_ids": [10**6]}], "token_ids"),
        ([{**START, "token_ids": "text"}], "token_ids"),
        ([{**START, "token_ids": [7] * CLOUD_CONTEXT}], "token_ids"),
        ([{**START, "max_tokens": 0}], "max_tokens"),
        ([{**START, "max_tokens": 2**40}], "max_tokens"),
        ([{**START, "stop": [""]}], "stop[0]"),
        ([{**START, "stop_token_ids": [10**6]}], "stop_token_ids"),
        ([{**START, "logprobs": -1}], "logprobs"),
        ([{**START, "sampling": {"temperature": "hot"}}], "sampling.temperature"),
        ([{**START, "sampling": {"temperature": -1.0}}], None),
        ([{"type": "end", "finish_reason": "stop", "steps": 1}], "type"),
        ([DRAFT], "type"),
        ([START, START], "type"),
        ([START, {**DRAFT, "position": -1}], "position"),
        ([START, {**DRAFT, "position": CLOUD_CONTEXT}], "position"),
        ([START, {**DRAFT, "token_ids": []}], "token_ids"),
        ([START, {**DRAFT, "token_ids": [1] * (LONGEST_DRAFT + 1)}], "token_ids"),
        ([START, {**DRAFT, "token_ids": [10**6]}], "token_ids"),
        ([START, {**DRAFT, "token_ids": [1.5]}], "token_ids[0]"),
        ([START, {**DRAFT, "key": "of another"}], None),
    ],
)
@pytest.mark.parametrize("text", [True, False], ids=["text", "binary"])
async def test_a_bad_frame_is_refused_by_the_name_of_its_field(
    url: str, frames: list[Any], param: str | None, text: bool
) -> None:
    codec: Any = msgspec.json if text else msgspec.msgpack
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/stream") as ws:
        for frame in frames:
            body = frame if isinstance(frame, bytes) else codec.encode(frame)
            await ws.send_frame(body, WSMsgType.TEXT if text and body.isascii() else WSMsgType.BINARY)
        async for message in ws:
            last = message
        told = (msgspec.json if last.type is WSMsgType.TEXT else msgspec.msgpack).decode(last.data)
        assert told["type"] == "error"
        assert told["error"]["type"] == "invalid_request_error"
        assert told["error"]["message"]
        assert told["error"]["param"] == param
        assert ws.close_code == aiohttp.WSCloseCode.POLICY_VIOLATION


async def test_a_frame_that_is_too_large_ends_the_connection_and_nothing_else(url: str, client: HTTPClient) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/stream") as ws:
        with contextlib.suppress(ConnectionError):  # the server may close before it has all of it
            await ws.send_bytes(b"x" * (messages.BODY_LIMIT + 1))
        message = await ws.receive()
        assert message.type not in (WSMsgType.TEXT, WSMsgType.BINARY)
    assert await streamed(client, [5, 6])


async def test_a_late_draft_is_dropped_and_counted(cloud_engine: CloudEngine, client: HTTPClient) -> None:
    prompt = list(cloud_engine.tokenizer.encode("Explain deep learning"))
    async with CloudStream(client, StartFrame(token_ids=prompt, max_tokens=60)) as stream:
        async for _ in stream:
            await stream.draft(0, prompt)
    assert stream.end
    assert stream.end.drafted == 0
    assert stream.end.dropped > 0


async def test_a_request_that_is_no_websocket_is_an_error_in_openais_shape(client: HTTPClient) -> None:
    with pytest.raises(RequestError):
        await client.get("/stream", dict)


async def test_the_client_raises_errors_of_this_project(client: HTTPClient) -> None:
    with pytest.raises(ContextLengthError):
        await streamed(client, [7] * CLOUD_CONTEXT)
    with pytest.raises(RequestError, match="vocabulary"):
        await streamed(client, [10**6])
    async with HTTPClient("http://127.0.0.1:9") as nobody:
        with pytest.raises(EndpointError):
            await streamed(nobody, [1])


async def test_an_engine_that_is_not_up_and_a_full_server_are_reported() -> None:
    async with (
        serving(StreamRoute(CloudEngine("nowhere"))) as server,
        HTTPClient(f"http://127.0.0.1:{server.port}") as c,
    ):
        with pytest.raises(EndpointError, match="not up"):
            await streamed(c, [1])

    def full(tokens: int, begun: bool) -> AbstractContextManager[Any]:
        assert (tokens, begun) == (3 + 40, False)
        raise OverloadedError("no room")

    route = StreamRoute(cast(CloudEngine, SlowEngine()), work=full)
    async with serving(route) as server, HTTPClient(f"http://127.0.0.1:{server.port}") as c:
        with pytest.raises(EndpointError, match="no room"):
            await streamed(c, [1, 2, 3])


@pytest.mark.parametrize(("prompt_tokens", "begun"), [(None, False), (3, False), (2, True)])
async def test_an_answer_that_goes_on_as_a_stream_is_admitted_as_one_that_has_begun(
    prompt_tokens: int | None, begun: bool
) -> None:
    """Else a cloud with a standing queue would refuse the rest of an answer of which it, or another, gave a part."""
    seen = list[bool]()

    def noted(_: int, begun: bool) -> AbstractContextManager[Any]:
        seen.append(begun)
        raise OverloadedError("no room")

    start = StartFrame(token_ids=[1, 2, 3], max_tokens=5, sampling=Sampling(prompt_tokens=prompt_tokens))
    route = StreamRoute(cast(CloudEngine, SlowEngine()), work=noted)
    async with serving(route) as server, HTTPClient(f"http://127.0.0.1:{server.port}") as c:
        with pytest.raises(EndpointError, match="no room"):
            async with CloudStream(c, start) as stream:
                await anext(stream)
    assert seen == [begun]


@pytest.mark.parametrize("first", [False, True], ids=["in prefill", "in decode"])
@pytest.mark.parametrize("abrupt", [False, True], ids=["closing", "cut off"])
async def test_a_client_that_leaves_ends_its_generation(first: bool, abrupt: bool) -> None:
    engine = SlowEngine(first)
    async with serving(slow(engine)) as server, DelayProxy("127.0.0.1", server.port) as proxy:
        async with (
            HTTPClient(proxy.url) as client,
            CloudStream(client, StartFrame(token_ids=[1], max_tokens=5)) as stream,
        ):
            await engine.begun.wait()
            if first:
                assert (await anext(stream)).token_ids == [1]
            assert not engine.left.is_set()
            if abrupt:
                await proxy.cut()
        async with asyncio.timeout(10):
            await engine.left.wait()


async def test_a_client_that_leaves_frees_the_engine(cloud_engine: CloudEngine, client: HTTPClient) -> None:
    async with CloudStream(client, StartFrame(token_ids=[5, 6], max_tokens=240, sampling=HOT)) as stream:
        await anext(stream)
    async with asyncio.timeout(10):
        while True:
            await verify(cloud_engine, VerifyRound([1, 2, 3], [], GREEDY, 1))
            stats = cloud_engine.stats()
            if (stats["running"], stats["kv_cache_usage"]) == (0, 0):
                return


async def test_an_answer_is_recorded_however_it_ends() -> None:
    recorded: list[ContinuousAnswer] = []
    engine = SlowEngine(first=True)
    route = StreamRoute(cast(CloudEngine, engine), record=recorded.append)
    async with serving(route) as server, HTTPClient(f"http://127.0.0.1:{server.port}") as client:
        async with CloudStream(client, StartFrame(token_ids=[1], max_tokens=5)) as stream:
            await anext(stream)
            assert not recorded
        async with asyncio.timeout(10):
            while not recorded:
                await asyncio.sleep(0.01)
    assert (recorded[0].drawn, recorded[0].progress.steps) == (1, 1)


async def test_a_client_that_closes_after_the_whole_answer_is_no_failure(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def late(peer: stream_route.Peer) -> None:
        await asyncio.sleep(3600)  # until the client's closing cancels it

    monkeypatch.setattr(stream_route.Peer, "close", late)
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(url + "/stream") as ws:
            await ws.send_json({"type": "start", "token_ids": [5, 6, 7], "max_tokens": 2})
            while (await ws.receive_json())["type"] != "end":
                pass
            ws._response.close()
        async with asyncio.timeout(10):
            counted: dict[str, float] = {}
            while not any(counted.values()):
                text = await (await session.get(url + "/metrics")).text()
                lines = [line for line in text.splitlines() if 'route="/stream"' in line and "requests_total" in line]
                counted = {line.partition('outcome="')[2].partition('"')[0]: float(line.split()[-1]) for line in lines}
    assert {outcome for outcome, count in counted.items() if count} == {"ok"}


async def test_the_log_has_the_time_of_a_cancelled_answer_not_of_its_connection(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Old(messages.Exchange):
        """Of a connection that was opened a day ago."""

        def __post_init__(self) -> None:
            self.began -= 86_400

    monkeypatch.setattr("common.http.middleware.Exchange", Old)
    engine = SlowEngine()
    caplog.set_level("INFO", "common.http.middleware")
    async with serving(slow(engine)) as server, HTTPClient(f"http://127.0.0.1:{server.port}") as client:
        async with CloudStream(client, StartFrame(token_ids=[1], max_tokens=5)):
            await engine.begun.wait()
        async with asyncio.timeout(10):
            while not (lines := [line for line in caplog.messages if "/stream" in line]):
                await asyncio.sleep(0.01)
    milliseconds = float(lines[0].partition(" ms")[0].rpartition(" ")[2])
    assert milliseconds < 1e6


async def test_a_stream_takes_a_key_and_reads_its_own_tenants_cache() -> None:
    salts = []
    keys = ServerConfig(api_keys=[Secret("first-key"), Secret("second-key")])
    for key, tenant in (("first-key", ""), ("second-key", ""), ("second-key", "ann"), ("second-key", "bob")):
        engine = SlowEngine()
        async with serving(slow(engine), keys) as server:
            url = f"http://127.0.0.1:{server.port}"
            async with (
                HTTPClient(url, api_key=Secret(key)) as client,
                CloudStream(client, StartFrame(token_ids=[1], max_tokens=5, tenant=tenant)),
            ):
                await engine.begun.wait()
            async with HTTPClient(url) as nobody:
                with pytest.raises(EndpointError, match="401"):
                    await streamed(nobody, [1])
        salts.append(engine.salt)
    assert None not in salts
    assert len(set(salts)) == len(salts), "an edge shows one key for all its tenants"


async def test_a_half_open_connection_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "HEARTBEAT_SECONDS", 0.2)
    engine = SlowEngine(first=True)
    async with (
        serving(slow(engine)) as server,
        DelayProxy("127.0.0.1", server.port) as proxy,
        HTTPClient(proxy.url) as client,
        CloudStream(client, StartFrame(token_ids=[1], max_tokens=5)) as stream,
        asyncio.timeout(10),
    ):
        await anext(stream)
        proxy.stall()
        await engine.left.wait()
        proxy.flow()


async def test_a_connection_without_a_start_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_route, "START_SECONDS", 0.1)
    async with (
        serving(slow(SlowEngine())) as server,
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{server.port}/stream") as ws,
    ):
        told = msgspec.json.decode((await ws.receive(10)).data)
        assert "start" in told["error"]["message"]


async def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud.websocket.SEND_SECONDS", 0.1)

    class Blocked:
        async def send_str(self, body: str) -> None:
            await asyncio.sleep(3600)

    socket = ClientSocket(cast(web.WebSocketResponse, Blocked()), messages.Exchange())
    with pytest.raises(ClientLeftError):
        await Peer(socket).send(TokensFrame(position=0, token_ids=[1]))


async def test_a_sender_is_removed_with_its_stream() -> None:
    engine = SlowEngine()
    app = make_app()
    slow(engine).add_to(app)
    server = HTTPServer(app, "127.0.0.1", 0)
    await server.start()
    try:
        async with (
            HTTPClient(f"http://127.0.0.1:{server.port}") as own,
            CloudStream(own, StartFrame(token_ids=[1], max_tokens=5)),
        ):
            await engine.begun.wait()
            assert len(app[DRAFT_CHANNEL]._senders) == 1
        async with asyncio.timeout(10):
            while app[DRAFT_CHANNEL]._senders:
                await asyncio.sleep(0.01)
    finally:
        await server.stop()
