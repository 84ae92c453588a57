"""`/stream` and `/split` through the front: an answer goes on after its replica is lost, none of it lost or doubled."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable

import aiohttp
import msgspec
import pytest
from aiohttp import WSCloseCode

from benchmarks.toy_model import END, answer_of, cloud_model
from cloud.replicas.replica import Replica
from cloud.replicas.updates import roll
from common.cloud_client.stream import CloudStream
from common.errors import EndpointError, EngineError, RequestError, StoppingError
from common.http.client import HTTPClient
from common.http.error_replies import Busy
from common.protocol import codec
from common.protocol.stream_frames import EndFrame, StartFrame, TokensFrame
from common.types import FinishReason, Sampling
from tests.cloud.replicas.fake_replica import FakeReplica, RunningFront, front
from tests.cloud.test_kv_cache import store

TOKENS = 40


def prompts(count: int) -> list[list[int]]:
    """Prompts whose answers are long, each with another beginning."""
    found = []
    for first in range(1, 100_000):
        if len(answer_of(cloud_model, [first, 3, 9], TOKENS)) == TOKENS:
            found.append([first, 3, 9])
        if len(found) == count:
            break
    return found


PROMPT = prompts(1)[0]


def truth(prompt: list[int], tokens: int = TOKENS) -> list[int]:
    return answer_of(cloud_model, prompt, tokens)


async def answer(
    client: HTTPClient, start: StartFrame, after: Callable[[int], None] = lambda count: None
) -> tuple[list[int], EndFrame]:
    """The tokens of a stream, which must come one behind another, and its end; `after` is told how many have come."""
    tokens: list[int] = []
    async with CloudStream(client, start) as stream:
        async for frame in stream:
            assert frame.position == len(start.token_ids) + len(tokens)
            tokens += frame.token_ids
            after(len(tokens))
    assert stream.end is not None
    return tokens, stream.end


def working(running: RunningFront) -> FakeReplica:
    (found,) = [fake for fake in running.fakes if running.replica(fake).in_flight]
    return found


def paused(running: RunningFront, seconds: float = 0.005) -> None:
    for fake in running.fakes:
        fake.pause = seconds


async def test_a_stream_is_what_the_replica_streams_and_its_connection_is_kept() -> None:
    async with front() as running, HTTPClient(running.url) as client:
        for prompt in prompts(6):
            tokens, end = await answer(client, StartFrame(token_ids=prompt, max_tokens=TOKENS))
            assert tokens == truth(prompt)
            assert (end.steps, end.finish_reason) == (TOKENS, FinishReason.LENGTH)
        assert len(client.idle_websockets) == 1
        assert sorted(bool(fake.starts) for fake in running.fakes) == [True, True]


async def test_each_answer_of_a_connection_goes_to_the_replica_that_holds_its_prompt() -> None:
    async with front() as running, HTTPClient(running.url) as client:
        long = [*range(5, 105)]
        for holder in (*running.fakes, *running.fakes):
            store(holder.cache, "0", long, 16)
            await asyncio.sleep(0.05)
            await answer(client, StartFrame(token_ids=long, max_tokens=3))
            assert len(holder.starts) == 1
            holder.starts.clear()
            holder.cache.clear("0")


async def test_a_killed_replicas_streams_go_on_with_the_next_token() -> None:
    async with front(3) as running, HTTPClient(running.url) as client:
        paused(running)
        kills: list[asyncio.Task[None]] = []

        def kill(count: int) -> None:
            if count in (7, 21):
                kills.append(asyncio.create_task(working(running).kill()))

        tokens, end = await answer(client, StartFrame(token_ids=PROMPT, max_tokens=TOKENS), kill)
        assert len(kills) == 2
        assert tokens == truth(PROMPT)
        assert end.steps == TOKENS
        starts = sorted((start for fake in running.fakes for start in fake.starts), key=lambda one: len(one.token_ids))
        assert len(starts) == 3
        for start in starts[1:]:
            assert start.sampling.prompt_tokens == len(PROMPT)
            assert len(start.token_ids) + start.max_tokens == len(PROMPT) + TOKENS


async def test_without_another_replica_a_stream_breaks_and_the_edge_is_told() -> None:
    """The negative control of the test above."""
    async with front(1) as running, HTTPClient(running.url) as client:
        paused(running)

        def kill(count: int) -> None:
            if count == 7:
                kills.append(asyncio.create_task(working(running).kill()))

        kills: list[asyncio.Task[None]] = []
        with pytest.raises(EndpointError, match="no replica"):
            await answer(client, StartFrame(token_ids=PROMPT, max_tokens=TOKENS), kill)


@pytest.mark.parametrize("state", ["dies", "lost_engine"])
@pytest.mark.parametrize("kept", [False, True], ids=["new connections", "kept connections"])
async def test_a_stream_that_ends_replicas_ends_two_of_them_and_not_all(state: str, kept: bool) -> None:
    async with front(4) as running, HTTPClient(running.url) as client:
        for prompt in prompts(40) if kept else []:
            await answer(client, StartFrame(token_ids=prompt, max_tokens=1))
        before = sum(one.served for one in running.fleet.replicas)
        for fake in running.fakes:
            setattr(fake, state, True)
        with pytest.raises(EndpointError):
            await answer(client, StartFrame(token_ids=PROMPT, max_tokens=TOKENS))
        assert sum(one.served for one in running.fleet.replicas) == before + 2


async def test_twenty_kills_under_load_lose_and_double_no_token() -> None:
    async with front(3) as running, HTTPClient(running.url) as client:
        paused(running, 0.004)
        turns, right, killing = itertools.cycle(prompts(24)), Counter[bool](), True

        async def ask_on() -> None:
            while killing:
                prompt = next(turns)
                tokens, _ = await answer(client, StartFrame(token_ids=prompt, max_tokens=TOKENS))
                right[tokens == truth(prompt)] += 1

        asking = asyncio.gather(*(ask_on() for _ in range(12)))
        for kill in range(20):
            busy = max(running.fakes, key=lambda fake: running.replica(fake).in_flight)
            await asyncio.wait({asyncio.create_task(busy.kill())}, timeout=0.02)
            async with asyncio.timeout(20):
                while sum(one.losses for one in running.fleet.replicas) <= kill:
                    await asyncio.sleep(0.005)
            await running.until_ready()
        killing = False
        await asking
        assert right[True] >= 20 and not right[False]
        assert sum(one.losses for one in running.fleet.replicas) == 20


async def test_an_answer_that_is_whole_is_not_continued_behind_its_end() -> None:
    prompt = next([n, 3] for n in range(1, 999) if truth([n, 3])[-1] == END)
    async with front() as running, HTTPClient(running.url) as client:
        for fake in running.fakes:
            fake.break_before_end = True
        tokens, end = await answer(client, StartFrame(token_ids=prompt, max_tokens=TOKENS))
        assert tokens == truth(prompt)
        assert end.finish_reason is FinishReason.STOP
        assert sum(len(fake.starts) for fake in running.fakes) == 1


async def test_an_answer_with_stop_strings_is_not_continued_by_one_that_has_not_seen_it() -> None:
    async with front() as running, HTTPClient(running.url) as client:
        paused(running)
        kills: list[asyncio.Task[None]] = []

        def kill(count: int) -> None:
            if count == 7:
                kills.append(asyncio.create_task(working(running).kill()))

        with pytest.raises(EndpointError, match="is lost"):
            await answer(client, StartFrame(token_ids=PROMPT, max_tokens=TOKENS, stop=["x"]), kill)


async def test_when_all_are_full_the_edge_is_told_that_they_are_and_not_that_they_are_lost() -> None:
    async with front() as running, HTTPClient(running.url) as client:
        for fake in running.fakes:
            fake.full = True
        with pytest.raises(Busy, match="no room"):
            await answer(client, StartFrame(token_ids=PROMPT, max_tokens=TOKENS))
        running.fakes[0].full = False
        assert (await answer(client, StartFrame(token_ids=PROMPT, max_tokens=TOKENS)))[0] == truth(PROMPT)


async def test_a_client_that_leaves_ends_its_replicas_answer() -> None:
    async with front() as running, HTTPClient(running.url) as client:
        paused(running, 0.05)
        async with CloudStream(client, StartFrame(token_ids=PROMPT, max_tokens=TOKENS)) as stream:
            await anext(stream)
        async with asyncio.timeout(10):
            while any(running.replica(fake).in_flight for fake in running.fakes):
                await asyncio.sleep(0.01)


async def test_a_drained_replicas_stream_ends_on_it_and_the_next_one_goes_elsewhere() -> None:
    async with front() as running, HTTPClient(running.url) as client:
        paused(running)
        rolling: list[asyncio.Task[None]] = []

        def update(count: int) -> None:
            if count == 3 and not rolling:
                rolling.append(asyncio.create_task(roll(running.fleet)))

        for prompt in prompts(5):
            tokens, _ = await answer(client, StartFrame(token_ids=prompt, max_tokens=TOKENS), update)
            assert tokens == truth(prompt)
        await asyncio.gather(*rolling)
        assert all(fake.starts_with > 1 for fake in running.fakes)
        assert [one.losses for one in running.fleet.replicas] == [0, 0]


async def test_sampling_without_a_place_of_the_answer_gets_one_and_one_with_it_keeps_it() -> None:
    from cloud.replicas.resumable import ResumableAnswer

    for given, kept in ((None, 3), (2, 2)):
        resumed = ResumableAnswer(
            StartFrame(token_ids=[1, 2, 3], max_tokens=9, sampling=Sampling(prompt_tokens=given, seed=5))
        )
        resumed.record(TokensFrame(position=3, token_ids=[4, 5], accepted=1))
        rest = resumed.rest
        assert (rest.token_ids, rest.max_tokens, rest.sampling.prompt_tokens) == ([1, 2, 3, 4, 5], 7, kept)
        resumed.lose_replica()
        end = resumed.record(EndFrame(finish_reason=FinishReason.STOP, steps=3, drafted=4, accepted=2, cloud_ms=9))
        assert isinstance(end, EndFrame)
        assert (end.steps, end.drafted, end.accepted) == (4, 5, 3)
        assert end.cloud_ms == 0, "the last part's alone is not the answer's"


@pytest.mark.parametrize("frame", [b"\xc1", b'{"type": "start"}', b"{"])
async def test_a_wrong_frame_is_refused_and_ends_the_connection(frame: bytes) -> None:
    async with front() as running, running.http.ws_connect("/stream", protocols=(codec.SUBPROTOCOL,)) as socket:
        await socket.send_bytes(frame)
        async with asyncio.timeout(10):
            while not socket.closed:
                await socket.receive()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoppingError("the server stops"), WSCloseCode.GOING_AWAY),
        (EngineError("no replica can take this"), WSCloseCode.TRY_AGAIN_LATER),
        (ZeroDivisionError("a fault of our own"), WSCloseCode.INTERNAL_ERROR),
    ],
    ids=["stopping", "none left", "fault"],
)
async def test_a_failure_closes_the_connection_with_the_code_of_a_replica(
    error: Exception, code: WSCloseCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pick(*arguments: object) -> Replica:
        raise error

    async with front() as running, running.http.ws_connect("/stream", protocols=(codec.SUBPROTOCOL,)) as socket:
        monkeypatch.setattr(running.fleet, "pick", pick)
        await socket.send_bytes(codec.encode(StartFrame(token_ids=PROMPT, max_tokens=1), codec.MSGPACK))
        assert (await socket.receive()).type is aiohttp.WSMsgType.BINARY
        closed = await asyncio.wait_for(socket.receive(), 10)
        assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, code)


async def test_a_split_connection_stays_with_a_replica_and_a_lost_one_is_noticed() -> None:
    async with front() as running:
        sockets = [await running.http.ws_connect("/split", protocols=(codec.SUBPROTOCOL,)) for _ in range(4)]
        names = []
        for socket in sockets:
            await socket.send_bytes(b"!")
            names.append((await socket.receive_bytes()).decode()[0])
        assert sorted(names) == ["0", "0", "1", "1"]
        await running.fakes[int(names[0])].kill()
        closed = await asyncio.wait_for(sockets[0].receive(), 10)
        assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, WSCloseCode.GOING_AWAY)
        other = sockets[next(at for at, name in enumerate(names) if name != names[0])]
        await other.send_bytes(b"?")
        assert (await other.receive_bytes())[1:] == b"?"
        for socket in sockets:
            await socket.close()
        async with asyncio.timeout(10):
            while any(one.connections for one in running.fleet.replicas):
                await asyncio.sleep(0.01)


def test_frames_that_older_edges_read_are_as_before() -> None:
    frame = TokensFrame(position=1, token_ids=[2])
    assert msgspec.to_builtins(frame) == {"type": "tokens", "position": 1, "token_ids": [2]}
    assert RequestError.status == 400
