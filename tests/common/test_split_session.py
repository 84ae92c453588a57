"""The edge's side of `GET /split` over a real socket that breaks: every token is right, or an error comes in time."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import numpy as np
import pytest

from cli.demo import free_ports
from cloud.split.connection import EdgeConnection
from cloud.split.context_manager import Limits
from common.cloud_client import split_connection, split_session
from common.cloud_client.split_session import SplitCloud, SplitSession
from common.config_schema import HttpClientConfig
from common.config_values import ServerConfig
from common.errors import EndpointError, EngineError, ModelMismatch, OverloadedError, RequestError
from common.http.client import HTTPClient
from common.http.error_replies import Busy
from common.http.messages import WEBSOCKETS
from common.http_server import HTTPServer, make_app
from common.protocol.split_frames import StatesFrame
from common.types import GREEDY, Sampling, StateEncoding
from experiments.harness.delay_proxy import DelayProxy
from tests.support.split.fake_tail import MANIFEST, FakeTail, FakeTailServer, fake_cloud, right_for, some_states
from tests.waiting import until

DEADLINE = 10.0


@asynccontextmanager
async def split_cloud(url: str, **config: Any) -> AsyncIterator[SplitCloud]:
    async with HTTPClient(url, HttpClientConfig(**config)) as http, SplitCloud(http) as cloud:
        yield cloud


async def asked(session: SplitSession, number: int, position: int, deadline: float = DEADLINE) -> int:
    """Sends the states up to `position` that were not sent yet, and asks for a token."""
    if session.positions < position:
        session.send(some_states(number, session.positions, position))
    return (await session.token(GREEDY, deadline)).token_id


async def goes_on(cloud: SplitCloud, number: int, first: int = 5, last: int = 12) -> None:
    async with cloud.session(MANIFEST.fingerprint) as session:
        for position in range(first, last):
            assert await asked(session, number, position) == right_for(number, position)


async def settled(fake: FakeTailServer) -> None:
    async with asyncio.timeout(DEADLINE):
        while fake.tail.lengths or len(fake.contexts):
            await asyncio.sleep(0.005)


async def test_many_sessions_share_one_connection_and_leave_nothing() -> None:
    async with fake_cloud(FakeTail(places=16, blocks=200)) as fake, split_cloud(fake.url) as cloud:
        await asyncio.gather(*(goes_on(cloud, number) for number in range(16)))
        await settled(fake)
        assert fake.tail.rows == 16 * 11 and fake.contexts.duplicates == 0
        assert len(fake.server._app[WEBSOCKETS]) == 1


async def test_each_encoding_takes_its_bytes_per_row() -> None:
    async with fake_cloud(FakeTail(blocks=40)) as fake, split_cloud(fake.url) as cloud:
        sizes = {}
        for encoding in StateEncoding:
            async with cloud.session(MANIFEST.fingerprint, encoding) as session:
                session.send(some_states(1, 0, 50))
                token = await session.token(GREEDY, DEADLINE)
                assert (token.token_id == right_for(1, 50)) or encoding is StateEncoding.INT8
                sizes[encoding] = session.bytes_up
                assert session.bytes_down > 0
        row = MANIFEST.hidden * 50
        assert sizes[StateEncoding.FP32] - sizes[StateEncoding.FP16] == pytest.approx(2 * row, abs=8)
        assert sizes[StateEncoding.INT8] - sizes[StateEncoding.FP16] == pytest.approx(200 - row, abs=20)


async def test_long_prompts_go_in_pieces_and_large_numbers_as_they_are() -> None:
    tail = FakeTail(blocks=400)
    tail.max_model_len = 2000
    async with fake_cloud(tail) as fake, split_cloud(fake.url) as cloud, cloud.session(MANIFEST.fingerprint) as session:
        assert await asked(session, 1, 700) == right_for(1, 700)
        session.send(some_states(1, 700, 701) + np.float32(200_000))
        await session.flush()
        token = await session.token(GREEDY, DEADLINE)
        assert token.token_id == (right_for(1, 701) + 4 * 200_000 * 701) % 9973


async def test_positions_that_are_sent_together_are_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    received = list[int]()
    store = EdgeConnection._store_states

    def counted(self: EdgeConnection, frame: StatesFrame) -> None:
        received.append(frame.count)
        store(self, frame)

    monkeypatch.setattr(EdgeConnection, "_store_states", counted)
    async with fake_cloud() as fake, split_cloud(fake.url) as cloud, cloud.session(MANIFEST.fingerprint) as session:
        assert await asked(session, 1, 5) == right_for(1, 5)
        assert await asked(session, 1, 29) == right_for(1, 29)  # 24 tokens of which an exit was confident
    assert received == [5, 24]


async def test_what_a_session_flushes_is_at_the_cloud_before_it_asks() -> None:
    async with fake_cloud() as fake, split_cloud(fake.url) as cloud, cloud.session(MANIFEST.fingerprint) as session:
        session.send(some_states(1, 0, 9))
        await session.flush()
        async with asyncio.timeout(DEADLINE):
            while fake.contexts.received < 9:
                await asyncio.sleep(0.005)
        assert fake.tail.steps == 0


async def test_states_that_the_cloud_has_lost_are_sent_again() -> None:
    async with fake_cloud() as fake, split_cloud(fake.url) as cloud, cloud.session(MANIFEST.fingerprint) as session:
        for position, lose in (
            (5, fake.pool.drop_all),
            (6, lambda: fake.contexts.close(session.id)),
            (7, fake.pool.drop_all),
        ):
            assert await asked(session, 1, position) == right_for(1, position)
            lose()
        assert await asked(session, 1, 9) == right_for(1, 9)
        assert fake.tail.rows == 5 + 6 + 7 + 9


async def test_a_connection_that_breaks_costs_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_session, "ATTEMPTS", 20)  # on a slow machine several cuts may fall into one question
    async with (
        fake_cloud(FakeTail(seconds=0.02)) as fake,
        DelayProxy("127.0.0.1", fake.server.port, 0.002) as proxy,
        split_cloud(proxy.url) as cloud,
    ):
        going = [asyncio.create_task(goes_on(cloud, number, 5, 25)) for number in range(3)]
        for _ in range(6):
            await asyncio.sleep(0.07)
            await proxy.cut()
        await asyncio.gather(*going)


async def test_without_asking_again_a_broken_connection_would_cost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_session, "ATTEMPTS", 1)
    async with (
        fake_cloud(FakeTail(seconds=30)) as fake,
        DelayProxy("127.0.0.1", fake.server.port) as proxy,
        split_cloud(proxy.url) as cloud,
        cloud.session(MANIFEST.fingerprint) as session,
    ):
        waiting = asyncio.create_task(asked(session, 1, 5))
        await until(lambda: fake.tail.running)
        await proxy.cut()
        with pytest.raises(EndpointError, match="broke"):
            await waiting


async def test_a_restarted_cloud_gets_everything_again() -> None:
    (port,) = free_ports(1)
    async with split_cloud(f"http://127.0.0.1:{port}") as cloud, cloud.session(MANIFEST.fingerprint) as session:
        for position in (5, 6, 7):
            async with fake_cloud(port=port) as fake:
                assert await asked(session, 1, position) == right_for(1, position)
                assert fake.tail.rows == position
            with pytest.raises(EndpointError):
                await session.token(GREEDY, DEADLINE)
            await asyncio.sleep(split_connection.PAUSE_SECONDS)


async def test_a_cloud_that_is_not_there_fails_at_once_and_is_tried_again_after_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(split_connection, "PAUSE_SECONDS", 3600.0)
    (port,) = free_ports(1)
    async with split_cloud(f"http://127.0.0.1:{port}") as cloud, cloud.session(MANIFEST.fingerprint) as session:
        session.send(some_states(1, 0, 5))
        with pytest.raises(EndpointError, match="cannot reach"):
            await session.token(GREEDY, DEADLINE)
        async with fake_cloud(port=port) as fake:
            with pytest.raises(EndpointError, match="cannot reach"):  # within the pause nothing is even tried
                await session.token(GREEDY, DEADLINE)
            assert not len(fake.contexts)
            monkeypatch.setattr(split_connection, "PAUSE_SECONDS", 0.0)
            assert await asked(session, 1, 6) == right_for(1, 6)


async def test_a_cloud_that_stalls_is_noticed_by_the_deadline_and_used_again_later() -> None:
    async with (
        fake_cloud() as fake,
        DelayProxy("127.0.0.1", fake.server.port) as proxy,
        split_cloud(proxy.url) as cloud,
        cloud.session(MANIFEST.fingerprint) as session,
    ):
        assert await asked(session, 1, 5) == right_for(1, 5)
        proxy.stall()
        began = time.monotonic()
        with pytest.raises(EndpointError, match="no token within"):
            await asked(session, 1, 6, 0.2)
        assert time.monotonic() - began < DEADLINE
        proxy.flow()
        assert await asked(session, 1, 7) == right_for(1, 7)


async def test_a_half_open_cloud_is_lost_when_it_answers_no_ping() -> None:
    async with (
        fake_cloud() as fake,
        DelayProxy("127.0.0.1", fake.server.port) as proxy,
        split_cloud(proxy.url, idle_timeout=0.3) as cloud,
        cloud.session(MANIFEST.fingerprint) as session,
    ):
        assert await asked(session, 1, 5) == right_for(1, 5)
        link = cloud.link()
        proxy.stall()
        with pytest.raises(EndpointError):
            await asked(session, 1, 6, 3.0)
        assert link.failure is not None


async def test_a_question_given_up_leaves_session_and_connection_as_they_were() -> None:
    async with fake_cloud(FakeTail(seconds=0.1)) as fake, split_cloud(fake.url) as cloud:
        async with cloud.session(MANIFEST.fingerprint) as session, cloud.session(MANIFEST.fingerprint) as other:
            session.send(some_states(1, 0, 5))
            given_up = asyncio.create_task(session.token(GREEDY, DEADLINE))
            await until(lambda: fake.tail.running)
            given_up.cancel()
            await asyncio.wait([given_up])
            answers = await asyncio.gather(asked(session, 1, 6), asked(other, 2, 4))
            assert answers == [right_for(1, 6), right_for(2, 4)]
            assert fake.tail.rows == 6 + 4  # what was given up was computed once
        await settled(fake)


async def test_leaving_a_session_ends_its_question_at_the_cloud() -> None:
    async with fake_cloud(FakeTail(seconds=30)) as fake, split_cloud(fake.url) as cloud:
        async with cloud.session(MANIFEST.fingerprint) as session:
            with pytest.raises(EndpointError):
                await asked(session, 1, 5, 0.1)
        await settled(fake)


async def test_refusals_are_errors_of_their_kind() -> None:
    async with fake_cloud() as fake, split_cloud(fake.url) as cloud:
        async with cloud.session("0" * 64) as session:
            session.send(some_states(1, 0, 5))
            with pytest.raises(ModelMismatch):
                await session.token(GREEDY, DEADLINE)
        async with cloud.session(MANIFEST.fingerprint) as session:
            session.send(some_states(1, 0, 5))
            with pytest.raises(RequestError, match="sampling"):
                await session.token(Sampling(presence_penalty=1.0), DEADLINE)
            assert await asked(session, 1, 6) == right_for(1, 6)
            with pytest.raises(RequestError, match="finite"):
                session.send(np.full((1, MANIFEST.hidden), np.nan, np.float32))
            assert await asked(session, 1, 7) == right_for(1, 7)


@pytest.mark.parametrize(("error", "kind"), [(OverloadedError("full"), Busy), (EngineError("down"), EndpointError)])
async def test_a_full_or_restarting_cloud_raises_and_is_asked_again_later(error: Exception, kind: type) -> None:
    failing = [error]

    @contextmanager
    def work(_: int) -> Any:
        if failing:
            raise failing.pop()
        yield

    async with (
        fake_cloud(work=work) as fake,
        split_cloud(fake.url) as cloud,
        cloud.session(MANIFEST.fingerprint) as session,
    ):
        with pytest.raises(kind):
            await asked(session, 1, 5)
        assert await asked(session, 1, 6) == right_for(1, 6)


async def test_a_session_that_the_cloud_cannot_hold_is_refused() -> None:
    async with (
        fake_cloud(limits=Limits(session_bytes=100)) as fake,
        split_cloud(fake.url) as cloud,
        cloud.session(MANIFEST.fingerprint) as session,
    ):
        with pytest.raises(RequestError, match="session_bytes"):
            await asked(session, 1, 60)


async def test_a_cloud_without_a_tail_says_what_to_set() -> None:
    server = HTTPServer(make_app(ServerConfig()), "127.0.0.1", 0)
    await server.start()
    try:
        async with (
            split_cloud(f"http://127.0.0.1:{server.port}") as cloud,
            cloud.session(MANIFEST.fingerprint) as session,
        ):
            with pytest.raises(RequestError, match=r"cloud\.split\.manifest"):
                await asked(session, 1, 5)
    finally:
        await server.stop()


async def test_a_closed_client_fails_what_waits() -> None:
    async with fake_cloud(FakeTail(seconds=30)) as fake, split_cloud(fake.url) as cloud:
        session = cloud.session(MANIFEST.fingerprint)
        waiting = asyncio.create_task(asked(session, 1, 5))
        await until(lambda: fake.tail.running)
        await cloud.close()
        with pytest.raises(EndpointError):
            await waiting
