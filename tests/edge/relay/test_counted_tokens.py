"""What a cloud alone reads for a key is admitted before it is sent, and counted also without figures of the cloud."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from common.errors import EndpointError, RequestError
from common.http.client import HTTPClient
from edge.api import startup
from edge.draft_generator import DraftGenerator
from edge.tenants.quotas import Quotas
from edge.tenants.token_guess import guessed_tokens
from tests.support.edge_in_process import edge_of
from tests.support.fake_openai import WORDS, FakeOpenAI, serving
from tests.support.manual_clock import ManualClock

LIMIT = 100
LONG = "word " * 400
GUESS = 500


def chat(text: str, **fields: Any) -> dict[str, Any]:
    """It asks for what the edge does not support."""
    return {"messages": [{"role": "user", "content": text}], "best_of": 3} | fields


@pytest.fixture(autouse=True)
def _stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "Quotas", partial(Quotas, clock=ManualClock(100.0)))


@asynccontextmanager
async def limited(fake: FakeOpenAI, limit: int = LIMIT) -> AsyncIterator[HTTPClient]:
    clouds = json.dumps([{"url": fake.url, "kind": "openai"}])
    settings = f"communication.clouds={clouds}", f"edge.quotas.tokens_per_minute={limit}"
    async with edge_of("http://localhost:8081", *settings) as edge:
        yield edge


async def left(edge: HTTPClient) -> float:
    rows = (await edge.get("/stats", dict))["quotas"]
    tokens: float = rows[""]["tokens_left"]
    return tokens


async def status(edge: HTTPClient, path: str, body: dict[str, Any]) -> int:
    return (await edge.reply(path, json.dumps(body).encode())).status


async def ended(edge: HTTPClient) -> None:
    async with asyncio.timeout(20):
        while (await edge.get("/stats", dict))["quotas"][""]["requests_now"]:
            await asyncio.sleep(0.01)


CASES = [("/v1/chat/completions", chat(LONG)), ("/v1/embeddings", {"input": LONG})]


@pytest.mark.parametrize(("path", "body"), CASES)
async def test_of_prompts_beyond_the_limit_one_is_admitted_and_then_counts_as_the_cloud_says(
    path: str, body: dict[str, Any]
) -> None:
    async with serving() as fake, limited(fake) as edge:
        fake.reading = fake.pause = 0.2
        fake.usage |= {"total_tokens": 11 + len(WORDS)}
        came = await asyncio.gather(*(status(edge, path, body) for _ in range(6)))
        assert (sorted(came), len(fake.asked)) == ([200] + [429] * 5, 1)
        assert await left(edge) == LIMIT - 11 - len(WORDS)


@pytest.mark.parametrize(("path", "body"), CASES)
async def test_what_the_cloud_refuses_costs_nothing(path: str, body: dict[str, Any]) -> None:
    async with serving() as fake, limited(fake) as edge:
        fake.status = 400
        assert await status(edge, path, body) >= 400
        assert await left(edge) == LIMIT


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank"])
async def test_leaving_early_pays_for_texts_that_the_cloud_reads(path: str) -> None:
    async with serving() as fake, limited(fake, 10_000) as edge:
        fake.reading = 30.0
        leaving = asyncio.create_task(edge.post(path, {"input": LONG}, dict))
        async with asyncio.timeout(20):
            while not fake.asked:
                await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await ended(edge)
        assert await left(edge) == 10_000 - GUESS
        assert (await edge.get("/stats", dict))["costs"]["cloud_tokens_today"] == {"": GUESS}


async def test_a_draft_is_admitted_before_it_is_made_and_counts_also_if_its_client_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = asyncio.Event()

    async def never(*_: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with serving() as fake, limited(fake) as edge:
        with pytest.raises(RequestError, match="max_tokens"):
            await edge.post("/draft", {"prompt": LONG, "max_tokens": 10**6}, dict)
        assert await left(edge) == LIMIT, "a refused one is given back"
        drafted = await edge.post("/draft", {"prompt": "word word", "max_tokens": 3}, dict)
        used = drafted["prompt_tokens"] + len(drafted["draft_token_ids"])
        assert await left(edge) == LIMIT - used
        assert await status(edge, "/draft", {"prompt": LONG, "max_tokens": 3}) == 429
        monkeypatch.setattr(DraftGenerator, "generate_draft", never)
        leaving = asyncio.create_task(edge.post("/draft", {"prompt_token_ids": [5] * 50, "max_tokens": 3}, dict))
        await asked.wait()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await ended(edge)
        assert await left(edge) == LIMIT - used - 50


async def test_a_wrong_figure_of_the_cloud_ends_no_answer_and_a_guess_counts() -> None:
    async with serving() as fake, limited(fake, 10_000) as edge:
        before: float = 10_000
        for figure in (None, -5, "many", 1.5, True):
            fake.usage = {"prompt_tokens": figure, "completion_tokens": figure, "prompt_tokens_details": figure}
            body = chat(LONG)
            answer = await edge.post("/v1/chat/completions", body, dict)
            assert answer["choices"][0]["message"]["content"] == "".join(WORDS)
            assert before - await left(edge) >= GUESS
            events = [json.loads(one) async for one in edge.events("/v1/chat/completions", body | {"stream": True})]
            assert "error" not in events[-1] and events[-1]["collaboration"]["tokens"]["cloud"] >= len(WORDS)
            after = await left(edge)
            assert after <= before - 2 * GUESS - len(WORDS)
            before = after


async def test_a_figure_beyond_all_bounds_keeps_nobody_out_for_long() -> None:
    async with serving() as fake, limited(fake) as edge:
        fake.usage = {"prompt_tokens": 2**62, "completion_tokens": 2**62}
        report = (await edge.post("/v1/chat/completions", chat("word"), dict))["collaboration"]
        assert report["tokens"]["cloud"] == 2**53
        assert await left(edge) == -5 * LIMIT


async def test_wrong_figures_end_no_answer_that_the_edge_began() -> None:
    async with serving() as fake, limited(fake, 10_000) as edge:
        fake.usage = {"prompt_tokens": -1, "completion_tokens": None}
        question = {"messages": [{"role": "user", "content": "What is AI?"}], "max_tokens": 40}
        gate = {"confidence_threshold": 1.0, "product_threshold": 1.0}
        answer = await edge.post("/v1/chat/completions", question | gate, dict)
        assert answer["choices"][0]["message"]["content"].endswith("".join(WORDS))
        assert not answer["collaboration"]["degraded"]


async def test_a_lost_cloud_costs_nothing() -> None:
    async with serving() as fake, limited(fake) as edge:
        assert await status(edge, "/v1/chat/completions", chat("word")) == 200
        before, fake.break_after = await left(edge), 0
        with pytest.raises(EndpointError):
            async for _ in edge.events("/v1/chat/completions", chat("word", stream=True)):
                pass
        assert await left(edge) == before


def test_token_ids_are_counted_and_a_text_that_is_read_with_many_counts_with_each() -> None:
    assert guessed_tokens({"input": [[5, 6], [7]]}) == 3
    assert guessed_tokens({"prompt": [5] * 50}) == 50
    assert guessed_tokens({"query": "a" * 400, "documents": ["b" * 40] * 10}) == 10 * 110
    assert guessed_tokens({"text_1": "a" * 400, "text_2": ["b" * 40] * 10}) == 10 * 110
    assert guessed_tokens({"input": ""}) == 1
