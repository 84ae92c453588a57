"""`GET /split` over a real socket: a wrong frame is refused without any effect, and the connection stays open."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest

from cloud.split import connection, route
from common.config_values import Secret, ServerConfig
from common.errors import EngineError, OverloadedError
from common.protocol.hidden_states import PackedStates, pack
from common.protocol.split_frames import (
    AskFrame,
    CloseFrame,
    CloudFrame,
    FaultFrame,
    OpenFrame,
    StatesFrame,
    TokenFrame,
)
from common.types import Sampling, StateEncoding
from tests.support.split.fake_tail import HIDDEN, MANIFEST, FakeTail, FakeTailServer, fake_cloud, right_for, some_states

WAIT = 10.0


class RawSocket:
    """A bare WebSocket, for frames that this project's client never sends."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws

    async def send(self, *frames: Any) -> None:
        for frame in frames:
            await self.ws.send_bytes(frame if isinstance(frame, bytes) else msgspec.msgpack.encode(frame))

    async def receive(self) -> TokenFrame | FaultFrame:
        message = await self.ws.receive(timeout=WAIT)
        assert message.type is aiohttp.WSMsgType.BINARY, message
        frame: CloudFrame = msgspec.msgpack.decode(message.data, type=CloudFrame)
        return frame

    async def fault(self) -> FaultFrame:
        frame = await self.receive()
        assert isinstance(frame, FaultFrame), frame
        return frame


@asynccontextmanager
async def line_to(cloud: FakeTailServer, key: str = "") -> AsyncIterator[RawSocket]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.ws_connect(f"{cloud.url}/split", max_msg_size=0) as ws,
    ):
        yield RawSocket(ws)


def new_session() -> str:
    return uuid.uuid4().hex


def opening(session: str, encoding: StateEncoding = StateEncoding.FP32) -> OpenFrame:
    return OpenFrame(session=session, fingerprint=MANIFEST.fingerprint, encoding=encoding)


def states(session: str, number: int, start: int, stop: int, **other: Any) -> StatesFrame:
    packed = pack(some_states(number, start, stop), StateEncoding.FP32)
    fields = {"session": session, "start": start, "count": stop - start, "data": packed.data}
    return StatesFrame(**(fields | other))


async def settled(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not holds():
            await asyncio.sleep(0.005)


async def test_sessions_of_one_connection_are_answered_each_in_its_order() -> None:
    async with fake_cloud(FakeTail(seconds=0.01)) as cloud, line_to(cloud) as line:
        sessions = [new_session() for _ in range(4)]
        for number, session in enumerate(sessions):
            await line.send(
                opening(session), states(session, number, 0, 5), AskFrame(session=session, id=0, position=5)
            )
            await line.send(states(session, number, 5, 6), AskFrame(session=session, id=1, position=6))
        replies = [await line.receive() for _ in range(8)]
        assert all(isinstance(reply, TokenFrame) for reply in replies)
        for number, session in enumerate(sessions):
            mine = [reply for reply in replies if reply.session == session]
            assert [(t.id, t.token_id) for t in mine if isinstance(t, TokenFrame)] == [
                (0, right_for(number, 5)),
                (1, right_for(number, 6)),
            ]
        assert cloud.tail.max_running > 1
        await line.send(*(CloseFrame(session=session) for session in sessions))
        await settled(lambda: not cloud.tail.lengths and len(cloud.contexts) == 0)


WRONG_SAMPLING = ({"temperature": -1}, {"top_p": 0.0}, {"top_k": -1}, {"grammar": {"kind": "json", "text": "{}"}})


def malformed(rng: random.Random, session: str) -> bytes:
    """One frame with one fault."""

    def frame(**wrong: Any) -> bytes:
        good = {"type": "states", "session": session, "start": 3, "count": 2}
        good["data"] = pack(some_states(1, 3, 5), StateEncoding.FP32).data
        return msgspec.msgpack.encode({name: value for name, value in (good | wrong).items() if value is not ...})

    numbers = some_states(1, 3, 5).copy()
    numbers[rng.randrange(2), rng.randrange(HIDDEN)] = rng.choice([np.nan, np.inf, -np.inf])
    extra = rng.randrange(1, 40)
    size = 2 * HIDDEN * 4
    ask = {"type": "ask", "session": session, "id": 1, "position": 3, "sampling": {}}
    scales = np.array([1, np.nan], "<f4").tobytes()
    return rng.choice(
        [
            lambda: frame(data=bytes(size + extra)),
            lambda: frame(data=bytes(max(0, size - extra))),
            lambda: frame(count=rng.choice([0, 1, 3, 2049, 2**31, 2**63, -1, 2.0, "2", None, [2]])),
            lambda: frame(start=rng.choice([-1, 2**31, 2**63, 1.5, "3", None, [3]])),
            lambda: frame(data=rng.choice(["text" * 8, 7, [0.0] * 8, [[0.0] * 4] * 2, {"a": 1}, None, ...])),
            lambda: frame(data=numbers.astype("<f4").tobytes()),
            lambda: frame(kind="fp16", data=numbers.astype("<f2").tobytes()),
            lambda: frame(kind=rng.choice(["float64", 3, "FP16", "pickle"])),
            lambda: frame(kind="int8", data=bytes(2 * HIDDEN), scales=scales),
            lambda: frame(kind="int8", data=bytes(2 * HIDDEN), scales=bytes(extra if extra != 8 else 9)),
            lambda: frame(scales=bytes(extra)),
            lambda: frame(shape=[2, HIDDEN]),
            lambda: frame(type=rng.choice(["state", "exec", 1, None, ...])),
            lambda: msgspec.msgpack.encode(ask | {"position": rng.choice([0, -1, 2**31, 1.5, "3"])}),
            lambda: msgspec.msgpack.encode(ask | {"id": rng.choice([-1, "x", None])}),
            lambda: msgspec.msgpack.encode(ask | {"position": 100}),
            lambda: msgspec.msgpack.encode(ask | {"sampling": rng.choice(WRONG_SAMPLING)}),
            lambda: msgspec.msgpack.encode(
                {"type": "open", "session": session, "fingerprint": "0" * 64, "kind": "fp16"}
            ),
            lambda: msgspec.msgpack.encode({"type": "open", "session": session, "fingerprint": 1, "kind": "fp16"}),
        ]
    )()


async def test_500_malformed_uploads_execute_nothing_and_leave_nothing() -> None:
    rng = random.Random(500)
    async with fake_cloud() as cloud, line_to(cloud) as line:
        for _ in range(500):
            session = new_session()
            await line.send(opening(session), states(session, 1, 0, 3), malformed(rng, session))
            fault = await line.fault()
            assert 400 <= fault.status < 500 and fault.session == session, fault
            assert (len(cloud.contexts), cloud.contexts.bytes, cloud.tail.steps) == (0, 0, 0), fault
            await line.send(AskFrame(session=session, id=9, position=3))
            assert (await line.fault()).status == 403
        session = new_session()
        await line.send(opening(session), states(session, 1, 0, 5), AskFrame(session=session, id=0, position=5))
        token = await line.receive()
        assert isinstance(token, TokenFrame) and token.token_id == right_for(1, 5)


async def test_without_the_check_a_malformed_upload_would_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedStates, "check", lambda self, count: None)
    async with fake_cloud() as cloud, line_to(cloud) as line:
        session, wrong = new_session(), some_states(1, 0, 3).copy()
        wrong[1, 1] = np.nan
        data = wrong.astype("<f4").tobytes()
        await line.send(opening(session), StatesFrame(session=session, start=0, count=3, data=data))
        await settled(lambda: cloud.contexts.bytes > 0)


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x93" * 400, b"\x81\xa4type", b"\x80", b"garbage", b"\xdb\xff\xff\xff\xff"]
)
async def test_bytes_that_are_no_frame_are_refused_and_the_connection_stays_open(data: bytes) -> None:
    async with fake_cloud() as cloud, line_to(cloud) as line:
        session = new_session()
        await line.send(opening(session), states(session, 1, 0, 5), data)
        fault = await line.fault()
        assert (fault.status, fault.session) == (400, None)
        await line.send(AskFrame(session=session, id=0, position=5))
        assert isinstance(await line.receive(), TokenFrame)


async def test_a_frame_above_the_size_limit_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "BODY_LIMIT", 0)
    monkeypatch.setattr(route, "MAX_STATES", 4)
    async with fake_cloud() as cloud, line_to(cloud) as line:
        session = new_session()
        await line.send(opening(session), states(session, 1, 0, 200))
        message = await line.ws.receive(timeout=WAIT)
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        assert cloud.contexts.bytes == 0


async def test_text_ends_the_connection() -> None:
    async with fake_cloud() as cloud, line_to(cloud) as line:
        await line.ws.send_str("{}")
        assert (await line.fault()).status == 400
        assert (await line.ws.receive(timeout=WAIT)).type is aiohttp.WSMsgType.CLOSE


async def test_a_foreign_session_is_refused_and_stays_as_it_was() -> None:
    keys = ServerConfig(api_keys=[Secret("a"), Secret("b")])
    async with fake_cloud(config=keys) as cloud, line_to(cloud, "a") as mine, line_to(cloud, "b") as theirs:
        session = new_session()
        await mine.send(opening(session), states(session, 1, 0, 5))
        await settled(lambda: cloud.contexts.held(session) == 5)
        for frame in (
            opening(session),
            states(session, 2, 5, 6),
            AskFrame(session=session, id=0, position=5),
            CloseFrame(session=session),
            msgspec.msgpack.encode({"type": "states", "session": session}),
        ):
            await theirs.send(frame)
            if not isinstance(frame, CloseFrame):
                assert 400 <= (await theirs.fault()).status < 500
        assert cloud.contexts.held(session) == 5 and cloud.tail.steps == 0
        await mine.send(AskFrame(session=session, id=0, position=5))
        token = await mine.receive()
        assert isinstance(token, TokenFrame) and token.token_id == right_for(1, 5)


async def test_frames_before_the_open_are_refused_on_each_connection() -> None:
    async with fake_cloud() as cloud, line_to(cloud) as line, line_to(cloud) as another:
        session = new_session()
        for frame in (states(session, 1, 0, 5), AskFrame(session=session, id=3, position=5)):
            await line.send(frame)
            fault = await line.fault()
            assert (fault.status, fault.error.code, fault.session) == (403, "foreign_session", session)
        assert fault.id == 3
        await line.send(opening(session), states(session, 1, 0, 5))
        await settled(lambda: cloud.contexts.held(session) == 5)
        await another.send(
            opening(session), AskFrame(session=session, id=0, position=5)
        )  # an edge that reconnects continues
        assert isinstance(await another.receive(), TokenFrame)


async def test_missing_states_are_reported_when_a_token_needs_them() -> None:
    async with fake_cloud() as cloud, line_to(cloud) as line:
        session = new_session()
        await line.send(opening(session), states(session, 1, 0, 3), states(session, 1, 5, 7))
        await line.send(AskFrame(session=session, id=0, position=7))
        fault = await line.fault()
        assert (fault.status, fault.error.code, fault.held, fault.id) == (409, "states_missing", 3, 0)
        await line.send(states(session, 1, 3, 7), AskFrame(session=session, id=1, position=7))
        token = await line.receive()
        assert isinstance(token, TokenFrame) and token.token_id == right_for(1, 7)


async def test_another_models_session_is_refused() -> None:
    async with fake_cloud() as cloud, line_to(cloud) as line:
        await line.send(OpenFrame(session=new_session(), fingerprint="0" * 64, encoding=StateEncoding.FP16))
        fault = await line.fault()
        assert (fault.status, fault.error.code, len(cloud.contexts)) == (409, "model_mismatch", 0)


async def test_too_many_sessions_or_requests_have_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_SESSIONS", 2)
    monkeypatch.setattr(connection, "MAX_ASKS", 2)
    async with fake_cloud(FakeTail(seconds=0.2)) as cloud, line_to(cloud) as line:
        sessions = [new_session() for _ in range(3)]
        await line.send(*map(opening, sessions))
        assert (await line.fault()).status == 429
        first = sessions[0]
        await line.send(states(first, 1, 0, 5), *(AskFrame(session=first, id=n, position=n + 2) for n in range(3)))
        fault = await line.fault()
        assert (fault.status, fault.id, fault.session) == (429, 2, first)
        assert isinstance(await line.receive(), TokenFrame)  # the session is as it was


@pytest.mark.parametrize(("error", "status"), [(OverloadedError("full"), 429), (EngineError("restarting"), 503)])
async def test_a_full_or_restarting_cloud_is_reported_and_loses_no_session(error: Exception, status: int) -> None:
    failing = [error]

    @contextmanager
    def work(_: int) -> Any:
        if failing:
            raise failing.pop()
        yield

    async with fake_cloud(work=work) as cloud, line_to(cloud) as line:
        session = new_session()
        await line.send(opening(session), states(session, 1, 0, 5), AskFrame(session=session, id=0, position=5))
        assert (await line.fault()).status == status
        await line.send(AskFrame(session=session, id=1, position=5))
        assert isinstance(await line.receive(), TokenFrame)


async def test_an_edge_that_leaves_cancels_its_requests_and_can_return_to_its_session() -> None:
    async with fake_cloud(FakeTail(seconds=30)) as cloud:
        session, waiting = new_session(), new_session()
        async with line_to(cloud) as line:
            await line.send(opening(session), states(session, 1, 0, 5))
            await line.send(opening(waiting), states(waiting, 2, 0, 5), AskFrame(session=waiting, id=0, position=5))
            await settled(lambda: cloud.tail.running == 1)
        await settled(lambda: cloud.tail.running == 0 and not cloud.tail.lengths)
        assert cloud.contexts.held(session) == 5
        cloud.tail.seconds = 0
        async with line_to(cloud) as line:
            await line.send(opening(session), AskFrame(session=session, id=0, position=5))
            assert isinstance(await line.receive(), TokenFrame)


async def test_closing_a_session_cancels_its_request() -> None:
    async with fake_cloud(FakeTail(seconds=30)) as cloud, line_to(cloud) as line:
        session = new_session()
        await line.send(opening(session), states(session, 1, 0, 5), AskFrame(session=session, id=0, position=5))
        await settled(lambda: cloud.tail.running == 1)
        await line.send(CloseFrame(session=session))
        await settled(lambda: cloud.tail.running == 0 and not cloud.tail.lengths and len(cloud.contexts) == 0)


async def test_a_server_that_stops_answers_running_requests_and_closes() -> None:
    async with fake_cloud(FakeTail(seconds=0.2)) as cloud, line_to(cloud) as line:
        session = new_session()
        await line.send(opening(session), states(session, 1, 0, 5), AskFrame(session=session, id=0, position=5))
        await settled(lambda: cloud.tail.running == 1)
        cloud.server.drain_seconds = 3600.0
        draining = asyncio.create_task(cloud.server.drain())
        assert isinstance(await line.receive(), TokenFrame)
        assert (await line.fault()).status == 503
        assert (await line.ws.receive(timeout=WAIT)).data == aiohttp.WSCloseCode.GOING_AWAY
        await asyncio.wait_for(draining, 30)


async def test_sampling_settings_come_with_the_request() -> None:
    async with fake_cloud() as cloud, line_to(cloud) as line:
        session = new_session()
        asked = AskFrame(
            session=session, id=0, position=2, sampling=Sampling(temperature=0.7, top_k=5, min_p=0.1, seed=3)
        )
        await line.send(opening(session), states(session, 1, 0, 2), asked)
        assert isinstance(await line.receive(), TokenFrame)
        await line.send(AskFrame(session=session, id=1, position=2, sampling=Sampling(repetition_penalty=1.1)))
        fault = await line.fault()
        assert (fault.status, fault.error.param) == (400, "sampling.repetition_penalty")
