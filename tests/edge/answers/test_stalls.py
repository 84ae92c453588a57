"""A real edge whose answer is stopped at each place where it waits: one clear error, and the next answer is right."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from benchmarks.fake_cloud import serving
from common.cloud_client.stream import CloudStream
from common.decoding import progress
from common.errors import EndpointError
from common.http.client import HTTPClient
from edge.engine import worker
from edge.engine.lazy_sequence import LazySequence
from edge.engine.scheduler import BatchScheduler
from tests.support.edge_in_process import edge_of

ASK: dict[str, Any] = {"prompt": "<|user|>What is AI?<|assistant|>", "max_tokens": 8, "temperature": 0}
ROUNDS = {"use_confidence_check": False, "way": "rounds"}
CONTINUOUS = {"use_confidence_check": False, "way": "continuous"}
EDGE = {"mode": "edge_only"}


@pytest.fixture
async def edge() -> AsyncIterator[HTTPClient]:
    async with serving() as cloud, edge_of(cloud.url) as client:
        await cloud.share_vocabulary(client)
        yield client


async def never(*arguments: object, **named: object) -> Any:
    await asyncio.sleep(3600)


def forget_waiters(scheduler: BatchScheduler) -> None:
    """A lost wake-up: the thread has the tokens, and tells nobody."""
    scheduler._active = [job for job in scheduler._active if not job.done]


PLACES = [
    (BatchScheduler, "_collect_waiters", forget_waiters, EDGE, "the edge's model"),
    (BatchScheduler, "_collect_waiters", forget_waiters, ROUNDS, "the edge's model"),
    (LazySequence, "draft", never, ROUNDS, "something that has no name"),
    (HTTPClient, "_send", never, ROUNDS, "the cloud's verdict"),
    (CloudStream, "_open", never, CONTINUOUS, "the cloud's stream to open"),
]


@pytest.mark.parametrize(("owner", "name", "stalled", "fields", "place"), PLACES)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_an_answer_that_stands_still_is_an_error_that_says_where(
    edge: HTTPClient,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    stalled: Any,
    fields: dict[str, Any],
    place: str,
    streamed: bool,
) -> None:
    truth = await text(edge, ASK | fields)
    async with HTTPClient(edge.base_url) as client:
        await client.get("/health", dict)
        with monkeypatch.context() as patched:
            patched.setattr(progress, "STILL_SECONDS", 0.5)
            patched.setattr(owner, name, but_for(client) if owner is HTTPClient else stalled)
            ask = text_of_stream if streamed else text
            with pytest.raises(EndpointError, match=f"no sign of work for 0.5 s: the answer waited for {place}"):
                await ask(client, ASK | fields)
    stats: dict[str, Any] = await edge.get("/stats", dict)
    assert stats["engine"]["sequences_lent"] == 0
    assert await text(edge, ASK | fields) == truth


async def text(client: HTTPClient, body: dict[str, Any]) -> str:
    answer: dict[str, Any] = await client.post("/v1/completions", body, dict)
    written: str = answer["choices"][0]["text"]
    return written


async def text_of_stream(client: HTTPClient, body: dict[str, Any]) -> str:
    events = [json.loads(event) async for event in client.events("/v1/completions", body | {"stream": True})]
    return "".join(choice["text"] for event in events for choice in event["choices"])


def but_for(client: HTTPClient) -> Any:
    """Stalls the calls of all clients but the test's own."""
    send = HTTPClient._send

    async def sent(self: HTTPClient, call: Any) -> Any:
        return await (send(self, call) if self is client else never())

    return sent


async def test_the_report_says_what_an_answer_waited_for_longest(edge: HTTPClient) -> None:
    report = (await edge.post("/v1/completions", ASK | ROUNDS, dict))["collaboration"]
    assert report["waited_for"] in ("the edge's model", "the cloud's verdict")
    assert report["longest_wait_ms"] > 0


async def test_an_edge_that_is_stuck_in_a_step_says_so_fails_its_answers_and_takes_no_others(
    edge: HTTPClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its supervisor starts a server again that says so of its health for a minute."""
    draw, entered, let_go = BatchScheduler._draw, threading.Event(), threading.Event()

    def stuck(*arguments: Any) -> None:
        entered.set()
        let_go.wait()
        draw(*arguments)

    truth = await text(edge, ASK | EDGE)
    with monkeypatch.context() as patched:
        patched.setattr(BatchScheduler, "_draw", stuck)
        waiting = asyncio.create_task(text(edge, ASK | EDGE))
        await asyncio.to_thread(entered.wait)
        assert await edge.get("/health", dict) == {"status": "ok"}
        patched.setattr(worker, "STUCK_AFTER_S", -600.0)
        patched.setattr(progress, "STILL_SECONDS", 0.2)
        with pytest.raises(EndpointError, match="stuck in a step"):
            await edge.get("/health", dict)
        with pytest.raises(EndpointError, match="stuck in a step"):
            await text(edge, ASK | EDGE)
        let_go.set()
        with contextlib.suppress(EndpointError):  # it may end before anybody has looked
            await waiting
    assert await edge.get("/health", dict) == {"status": "ok"}
    assert await text(edge, ASK | EDGE) == truth


async def test_an_edge_whose_thread_has_failed_fails_its_answers_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(scheduler: BatchScheduler) -> None:
        raise ZeroDivisionError("a fault of our own")

    async with edge_of("http://127.0.0.1:1") as edge:
        with monkeypatch.context() as patched:
            patched.setattr(BatchScheduler, "_step", broken)
            with pytest.raises(EndpointError, match="the edge model has failed"):
                await text(edge, ASK | EDGE)
        with pytest.raises(EndpointError, match="has stopped"):
            await edge.get("/health", dict)
        assert "ZeroDivisionError" in caplog.text
