"""Clouds that are lost before, in and after a round: the answer is complete and in time, and lost clouds come back.

Real HTTP through a proxy that stalls and cuts, without models; each protection has a negative control beside it.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest

from benchmarks.fake_cloud import FakeCloud, serving
from common.cloud_client.pool import CallOutcome, CloudPool
from common.cloud_client.stream import CloudStream
from common.cloud_client.verifier import CloudVerifier
from common.config_schema import BreakerConfig, CommunicationConfig, HttpClientConfig
from common.decoding.pipeline import Pipeline
from common.decoding.policy import Plan
from common.decoding.request import DecodingRequest
from common.errors import EndpointError
from common.http.client import HTTPClient
from common.http.in_flight import InFlight
from common.types import GREEDY, Mode, Provenance
from experiments.harness.delay_proxy import DelayProxy
from tests.support.fakes import FakeDrafter, answer_of, cloud_model, erring_model

PROMPT = next([p, 2 * p] for p in range(1, 99) if len(answer_of(cloud_model, [p, 2 * p], 60)) > 30)
TRUTH = answer_of(cloud_model, PROMPT, 60)
EDGE = erring_model(2)
LOSSLESS = Plan(use_confidence_check=False, max_draft_tokens=2)
DEADLINE = 0.3
"""Seconds of the deadline under test; all other deadlines are much longer."""
PATIENCE = 10.0
"""Seconds after which a deadline counts as missed."""
NEVER = 60.0
STURDY = BreakerConfig(failures=100)


@pytest.fixture
async def fake() -> AsyncIterator[FakeCloud]:
    async with serving() as made:
        yield made


def clouds_of(*urls: str, breaker: BreakerConfig = STURDY, **http: Any) -> CloudPool:
    return CloudPool(
        CommunicationConfig(
            cloud_endpoint=urls[0],
            cloud_endpoints=list(urls[1:]),
            breaker=breaker,
            http_client=HttpClientConfig(**({"first_byte_timeout": NEVER} | http)),
        )
    )


def pipeline_of(clouds: CloudPool, plan: Plan = LOSSLESS) -> Pipeline:
    return Pipeline(DecodingRequest(PROMPT, len(TRUTH), GREEDY, plan), FakeDrafter(EDGE), CloudVerifier(clouds))


async def answer(clouds: CloudPool, plan: Plan = LOSSLESS) -> Pipeline:
    pipeline = pipeline_of(clouds, plan)
    ids = [token async for chunk in pipeline.run() for token in chunk.token_ids]
    assert ids == pipeline.answer.committed[len(PROMPT) :]
    return pipeline


def is_whole(pipeline: Pipeline) -> bool:
    """Whether the answer is the cloud's up to its loss, and after that exactly what the edge alone generates."""
    ids, tokens = pipeline.answer.committed[len(PROMPT) :], pipeline.answer.report.tokens
    known = len(ids) - tokens[Provenance.EDGE]
    return ids == TRUTH[:known] + answer_of(EDGE, [*PROMPT, *TRUTH[:known]], len(TRUTH) - known)


# The retry rule


async def test_a_round_whose_answer_was_lost_is_asked_again_and_run_once(fake: FakeCloud) -> None:
    fake.break_after_round = 2
    async with clouds_of(fake.url) as clouds:
        pipeline = await answer(clouds)
        (cloud,) = clouds
        assert cloud.client.traffic.retries == 1
    assert pipeline.answer.committed[len(PROMPT) :] == TRUTH
    assert pipeline.answer.report.degraded is None
    assert len(fake.asked) == len({one.idempotency_key for one in fake.asked})


async def test_without_retries_the_same_loss_costs_the_answer_its_cloud(fake: FakeCloud) -> None:
    fake.break_after_round = 2
    async with clouds_of(fake.url, max_retries=0) as clouds:
        pipeline = await answer(clouds)
    assert "broke the connection" in (pipeline.answer.report.degraded or "")
    assert is_whole(pipeline)


async def test_a_stream_whose_last_frame_alone_is_lost_is_not_continued_behind_its_end(fake: FakeCloud) -> None:
    prompt = next([p, 5] for p in range(1, 99) if 1 < len(answer_of(cloud_model, [p, 5], 60)) < 60)
    fake.break_before_end = True
    async with clouds_of(fake.url) as clouds:
        plan = Plan(mode=Mode.CLOUD_ONLY)
        pipeline = Pipeline(DecodingRequest(prompt, 60, GREEDY, plan), FakeDrafter(EDGE), CloudVerifier(clouds))
        ids = [token async for chunk in pipeline.run() for token in chunk.token_ids]
    assert ids == answer_of(cloud_model, prompt, 60)
    assert len(fake.starts) == 1
    assert pipeline.answer.report.degraded is None


async def test_what_is_not_safe_to_repeat_is_asked_once() -> None:
    """A server that reads the request line and breaks the connection, and counts the connections."""
    asked = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.transport.abort()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for path, times in (("/v1/completions", 1), ("/verify", 3)):
            asked.clear()
            async with HTTPClient(url, HttpClientConfig(max_retries=2)) as client:
                with pytest.raises(EndpointError, match="broke the connection"):
                    await client.post(path, {}, dict)
            assert len(asked) == times


async def test_repeats_end_with_the_total_deadline() -> None:
    async with HTTPClient("http://127.0.0.1:9", HttpClientConfig(timeout=1.0, max_retries=10)) as client:
        with pytest.raises(EndpointError, match="did not answer within 1 s"):
            await client.post("/verify", {}, dict)
        assert 1 < client.traffic.calls < 11


# Deadlines


@asynccontextmanager
async def stalling(fake: FakeCloud) -> AsyncIterator[DelayProxy]:
    async with DelayProxy("127.0.0.1", int(fake.url.rpartition(":")[2])) as proxy:
        yield proxy
        proxy.flow()


@pytest.mark.parametrize("chunks", [0, 3])
async def test_a_cloud_that_stalls_is_left_within_its_deadline(fake: FakeCloud, chunks: int) -> None:
    async with (
        stalling(fake) as proxy,
        clouds_of(proxy.url, first_byte_timeout=DEADLINE) as clouds,
        asyncio.timeout(PATIENCE),
    ):
        pipeline, seen, longest = pipeline_of(clouds), 0, 0.0
        if not chunks:
            proxy.stall()
        last = time.monotonic()
        async for _ in pipeline.run():
            longest, last, seen = max(longest, time.monotonic() - last), time.monotonic(), seen + 1
            if seen == chunks:
                proxy.stall()
        assert longest >= DEADLINE
        assert "did not answer within 0.3 s" in (pipeline.answer.report.degraded or "")
        assert not pipeline.answer.report.lossless
        assert is_whole(pipeline)


async def test_without_the_deadline_the_same_stall_holds_the_answer_up(fake: FakeCloud) -> None:
    async with stalling(fake) as proxy, clouds_of(proxy.url) as clouds:
        proxy.stall()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(4 * DEADLINE):
                await answer(clouds)


async def test_a_host_that_takes_no_connection_is_left_within_its_deadline() -> None:
    """A listener whose queue is full: further connections are neither accepted nor refused."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        async with clouds_of(f"http://127.0.0.1:{port}", connect_timeout=DEADLINE) as clouds, asyncio.timeout(PATIENCE):
            pipeline = await answer(clouds)
    assert "within 0.3 s" in (pipeline.answer.report.degraded or "")
    assert is_whole(pipeline)


# Loss


@pytest.mark.parametrize("chunks", range(0, 16, 3))
async def test_a_cut_cloud_leaves_a_whole_answer_and_one_line_that_says_why(fake: FakeCloud, chunks: int) -> None:
    port = int(fake.url.rpartition(":")[2])
    async with DelayProxy("127.0.0.1", port) as proxy, clouds_of(proxy.url) as clouds:
        pipeline, seen = pipeline_of(clouds), 0
        if chunks == 0:
            await proxy.stop()
        async for _ in pipeline.run():
            seen += 1
            if seen == chunks:
                await proxy.stop()
        report = pipeline.answer.report
        assert is_whole(pipeline)
        assert report.degraded
        assert "\n" not in report.degraded
        assert not report.lossless


async def test_without_fallback_a_cut_cloud_ends_the_answer(fake: FakeCloud) -> None:
    port = int(fake.url.rpartition(":")[2])
    async with DelayProxy("127.0.0.1", port) as proxy, clouds_of(proxy.url) as clouds:
        pipeline = pipeline_of(clouds, Plan(use_confidence_check=False, max_draft_tokens=2, fallback=False))
        with pytest.raises(EndpointError):  # noqa: PT012 - the loop is the statement
            async for _ in pipeline.run():
                await proxy.stop()
        assert not is_whole(pipeline)


async def test_another_cloud_goes_on_where_one_is_lost_and_the_answer_stays_lossless(fake: FakeCloud) -> None:
    async with serving() as other:
        ports = [int(one.url.rpartition(":")[2]) for one in (fake, other)]
        async with (
            DelayProxy("127.0.0.1", ports[0]) as first,
            DelayProxy("127.0.0.1", ports[1]) as second,
            clouds_of(first.url, second.url) as clouds,
        ):
            proxies = {first.url: (first, other), second.url: (second, fake)}
            lost, later = proxies[clouds.pick(PROMPT).url]
            pipeline, seen = pipeline_of(clouds), 0
            async for _ in pipeline.run():
                seen += 1
                if seen == 3:
                    await lost.stop()
            assert clouds.failovers == 1
    report = pipeline.answer.report
    assert pipeline.answer.committed[len(PROMPT) :] == TRUTH
    assert report.degraded is None
    assert report.lossless
    assert later.asked[0].prefix_length == 0, "it held nothing"
    assert all(round.prefix_length for round in later.asked[1:])


async def test_a_full_cloud_passes_the_round_on_and_is_not_given_up(fake: FakeCloud) -> None:
    async with serving() as other, clouds_of(fake.url, other.url, breaker=BreakerConfig(failures=1)) as clouds:
        preferred = clouds.pick(PROMPT)
        (fake if preferred.url == fake.url else other).full = True
        pipeline = await answer(clouds)
        assert pipeline.answer.report.lossless
        assert preferred.outcomes[CallOutcome.BUSY] == 1
        assert preferred.breaker.closed


# The breaker


async def test_a_cloud_that_is_down_is_asked_only_until_its_breaker_opens_and_again_when_it_is_back() -> None:
    async with serving() as once:
        url = once.url
    async with clouds_of(url, breaker=BreakerConfig(failures=3, probe_seconds=0.1)) as clouds:
        (cloud,) = clouds
        for number in range(20):
            pipeline = await answer(clouds)
            assert is_whole(pipeline)
            assert "cannot reach" in (pipeline.answer.report.degraded or "")
            assert pipeline.answer.report.cloud_calls == (4 if number < 3 else 0)
        async with serving(int(url.rpartition(":")[2])), asyncio.timeout(10):
            while not cloud.breaker.closed:
                await asyncio.sleep(0.01)
            assert (await answer(clouds)).answer.report.lossless


# Streams


async def read(stream: CloudStream, ids: list[int]) -> None:
    async for frame in stream:
        ids += frame.token_ids


async def continued(verifier: CloudVerifier, ids: list[int]) -> None:
    """Reads the whole answer, over as many streams as needed; raises EndpointError when no cloud is left."""
    while True:
        try:
            async with verifier.stream([*PROMPT, *ids], len(TRUTH) - len(ids)) as stream:
                await read(stream, ids)
                return
        except EndpointError:
            if len(ids) == len(TRUTH):
                return


@pytest.mark.parametrize("how", ["cut", "stall"])
async def test_a_stream_that_is_lost_is_noticed_in_time_and_goes_on_elsewhere(fake: FakeCloud, how: str) -> None:
    async with serving() as other:
        ports = [int(one.url.rpartition(":")[2]) for one in (fake, other)]
        fake.pause = other.pause = 0.01
        async with (
            DelayProxy("127.0.0.1", ports[0]) as first,
            DelayProxy("127.0.0.1", ports[1]) as second,
            clouds_of(first.url, second.url, idle_timeout=DEADLINE if how == "stall" else NEVER) as clouds,
        ):
            lost = first if clouds.pick(PROMPT).url == first.url else second
            verifier, ids = CloudVerifier(clouds), list[int]()
            going = asyncio.create_task(continued(verifier, ids))
            while len(ids) < 10:
                await asyncio.sleep(0.005)
            before = len(ids)
            await (lost.cut() if how == "cut" else asyncio.sleep(0, lost.stall()))
            async with asyncio.timeout(PATIENCE):
                await going
            assert before < len(TRUTH)
            assert ids == TRUTH
            states = {cloud.url: cloud.outcomes for cloud in clouds}
            assert states[lost.url][CallOutcome.FAILED] == 1
            assert sum(outcomes[CallOutcome.OK] for outcomes in states.values()) == 1
            assert all(cloud.in_flight == 0 for cloud in clouds)
            assert verifier.traffic.calls == 2
            assert verifier.traffic.bytes_down > 0
            lost.flow()


async def first_frame(clouds: CloudPool) -> None:
    """Of a stream over a connection that is not the first."""
    async with CloudVerifier(clouds).stream(PROMPT, 40) as stream:
        async for _ in stream:
            pass
    async with CloudVerifier(clouds).stream(PROMPT, 40) as stream:
        await anext(stream)


async def test_a_stream_that_shows_nothing_is_waited_for_while_the_cloud_answers_pings(fake: FakeCloud) -> None:
    async with clouds_of(fake.url, idle_timeout=DEADLINE, first_byte_timeout=DEADLINE, timeout=DEADLINE) as clouds:
        fake.pause = 0.001
        async with asyncio.timeout(PATIENCE):
            await first_frame(clouds)
        fake.pause = 5 * DEADLINE
        async with asyncio.timeout(PATIENCE), CloudVerifier(clouds).stream(PROMPT, 40) as stream:
            await anext(stream)


async def test_a_stream_that_shows_nothing_is_left_when_the_cloud_answers_no_ping(fake: FakeCloud) -> None:
    async def read(stream: CloudStream) -> None:
        async with asyncio.timeout(4 * DEADLINE):
            async for _ in stream:
                pass

    for deadline, expected in ((DEADLINE, EndpointError), (NEVER, TimeoutError)):
        fake.pause = 0.0
        async with (
            stalling(fake) as proxy,
            clouds_of(proxy.url, idle_timeout=deadline) as clouds,
            CloudVerifier(clouds).stream(PROMPT, 40) as stream,
        ):
            await anext(stream)
            proxy.stall()
            with pytest.raises(expected, match="sent nothing for 0.3 s" if deadline == DEADLINE else None):
                await read(stream)


@pytest.mark.parametrize("says_so", [True, False])
async def test_a_verify_that_takes_long_is_waited_for_while_the_cloud_says_that_it_works(
    fake: FakeCloud, says_so: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not says_so:  # the negative control
        monkeypatch.setattr(InFlight, "works_on", lambda *_: False)
    fake.pause = 5 * DEADLINE
    async with clouds_of(fake.url, first_byte_timeout=DEADLINE, timeout=2 * DEADLINE) as clouds:
        pipeline = Pipeline(DecodingRequest(PROMPT, 2, GREEDY, LOSSLESS), FakeDrafter(EDGE), CloudVerifier(clouds))
        async with asyncio.timeout(PATIENCE):
            async for _ in pipeline.run():
                pass
        assert (pipeline.answer.report.degraded is None) == says_so
        assert pipeline.answer.report.lossless == says_so


async def test_a_stream_that_stalls_holds_up_who_sets_no_deadline(fake: FakeCloud) -> None:
    fake.pause = 0.01
    async with stalling(fake) as proxy, clouds_of(proxy.url, idle_timeout=NEVER) as clouds:
        with pytest.raises(TimeoutError):  # noqa: PT012 - whichever statement it is
            async with asyncio.timeout(4 * DEADLINE), CloudVerifier(clouds).stream(PROMPT, 40) as stream:
                await anext(stream)
                proxy.stall()
                async for _ in stream:
                    pass


async def test_a_stream_whose_reader_fails_by_itself_says_nothing_of_the_cloud(fake: FakeCloud) -> None:
    fake.pause = 0.01
    async with clouds_of(fake.url, breaker=BreakerConfig(failures=1)) as clouds:
        (cloud,) = clouds
        with pytest.raises(EndpointError, match="the edge is lost"):  # noqa: PT012 - it is raised within
            async with CloudVerifier(clouds).stream(PROMPT, 40) as stream:
                await anext(stream)
                raise EndpointError("the edge is lost")
        assert cloud.breaker.closed
        assert cloud.outcomes[CallOutcome.CANCELLED] == 1
        assert cloud.in_flight == 0


async def test_a_stream_that_no_cloud_takes_fails_at_once_and_for_good() -> None:
    async with clouds_of("http://127.0.0.1:9", "http://127.0.0.1:10") as clouds:
        verifier = CloudVerifier(clouds)
        for _ in range(2):
            with pytest.raises(EndpointError, match="cannot reach"):
                async with verifier.stream(PROMPT, 40):
                    raise AssertionError("nothing was opened")
        assert verifier.traffic.calls == 2, "a cloud that failed the request is not asked by it again"


async def test_loads_of_streams_spread_over_clouds(fake: FakeCloud) -> None:
    fake.pause = 0.02
    async with serving() as other, clouds_of(fake.url, other.url) as clouds:
        other.pause = 0.02

        async def one(ids: Sequence[int]) -> None:
            await continued(CloudVerifier(clouds), list[int]())

        await asyncio.gather(*(one(PROMPT) for _ in range(8)))
        assert len(fake.starts) + len(other.starts) == 8
        assert abs(len(fake.starts) - len(other.starts)) <= 2
