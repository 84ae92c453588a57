"""Two API keys at one edge, over HTTP: limits, their headers, the day's cloud tokens, and who waits for whom."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from benchmarks.fake_cloud import FakeCloud
from common import config
from common.config_values import Secret
from common.errors import ConfigError
from common.fair_queue import FairQueue
from common.http.auth import tenant_name
from edge.api import startup
from edge.tenants.quotas import Quotas
from tests.support.edge_in_process import edge_of
from tests.support.fake_openai import serving as serving_openai
from tests.support.manual_clock import ManualClock

ANN, BOB = "key-of-ann", "key-of-bob"
EDGE_ONLY: dict[str, Any] = {"prompt": "word word", "max_tokens": 3, "temperature": 0, "mode": "edge_only"}
WITH_CLOUD = EDGE_ONLY | {"mode": "collaborative", "use_confidence_check": False, "way": "rounds"}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "What is AI?"}], "max_tokens": 3, "mode": "edge_only"}


def quotas(ann: dict[str, Any], **of_all: Any) -> str:
    keys = [{"api_key": ANN} | ann, {"api_key": BOB}]
    return "edge.quotas=" + json.dumps(of_all | {"keys": keys})


class HttpReply:
    """Status, headers and body of a response."""

    def __init__(self, response: aiohttp.ClientResponse, body: dict[str, Any]) -> None:
        self.status, self.headers, self.body = response.status, response.headers, body


class KeyedClient:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def post(self, path: str, body: dict[str, Any], key: str = ANN) -> HttpReply:
        async with self.session.post(path, json=body, headers={"Authorization": f"Bearer {key}"}) as response:
            await response.read()
            return HttpReply(response, {} if body.get("stream") and response.status == 200 else await response.json())

    async def stats(self, key: str = ANN) -> dict[str, Any]:
        async with self.session.get("/stats", headers={"Authorization": f"Bearer {key}"}) as response:
            found: dict[str, Any] = await response.json()
            return found


@asynccontextmanager
async def clients(cloud_url: str, *settings: str) -> AsyncIterator[KeyedClient]:
    async with edge_of(cloud_url, *settings) as edge, aiohttp.ClientSession(edge.base_url) as session:
        yield KeyedClient(session)


@pytest.fixture
def _stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates bring nothing while a test runs."""
    monkeypatch.setattr(startup, "Quotas", partial(Quotas, clock=ManualClock(100.0)))


@pytest.mark.usefixtures("_stopped_clock")
async def test_a_key_beyond_its_requests_is_told_as_openai_does_and_the_other_is_served(fake: FakeCloud) -> None:
    async with clients(fake.url, quotas({"requests_per_minute": 2})) as edge:
        first = await edge.post("/v1/completions", EDGE_ONLY)
        await edge.post("/v1/chat/completions", CHAT | {"stream": True})
        assert (first.status, first.headers["X-RateLimit-Remaining-Requests"]) == (200, "1")
        refused = [await edge.post(path, body) for path, body in (("/v1/completions", EDGE_ONLY), ("/draft", {}))]
        for one in refused:
            assert (one.status, one.body["error"]["code"]) == (429, "rate_limit_exceeded")
            assert one.headers["Retry-After"] == "30"
            assert one.headers["x-ratelimit-limit-requests"] == "2"
        anthropic = (await edge.post("/v1/messages", CHAT)).body
        assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "rate_limit_error")
        assert (await edge.post("/tokenize", {"prompt": "word"})).status == 200, "which computes no answer"
        other = await edge.post("/v1/completions", EDGE_ONLY, BOB)
        assert (other.status, "x-ratelimit-limit-requests" in other.headers) == (200, False)
        assert (await edge.post("/v1/completions", EDGE_ONLY, "neither")).status == 401


async def test_the_openai_client_waits_as_it_is_told_and_is_answered(
    fake: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = list[float]()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(0.05)

    async with (
        edge_of(fake.url, quotas({"requests_per_minute": 60, "concurrent_requests": 1})) as edge,
        openai.AsyncOpenAI(base_url=edge.base_url + "/v1", api_key=ANN, max_retries=1000) as client,
    ):
        monkeypatch.setattr("anyio.sleep", sleep)
        long = {"ignore_eos": True}  # so that the other one comes meanwhile
        asked = [client.completions.create(model="edge", prompt="word", max_tokens=100, extra_body=long) for _ in "12"]
        answers = await asyncio.gather(*asked)
    assert [len(answer.choices) for answer in answers] == [1, 1]
    assert slept and set(slept) == {1.0}, "what Retry-After says"


@pytest.mark.usefixtures("_stopped_clock")
async def test_the_tokens_that_count_are_those_of_the_usage(fake: FakeCloud) -> None:
    async with clients(fake.url, quotas({}, tokens_per_minute=60_000)) as edge:
        used = 0
        for body in (EDGE_ONLY, WITH_CLOUD, EDGE_ONLY | {"n": 2, "prompt": ["word", "word word"]}):
            used += (await edge.post("/v1/completions", body)).body["usage"]["total_tokens"]
        await edge.post("/v1/completions", EDGE_ONLY, BOB)
        (own,) = (await edge.stats())["quotas"].values()
        assert own["tokens_left"] == 60_000 - used
        after_prompt = await edge.post("/v1/completions", EDGE_ONLY | {"stream": True})
        assert "x-ratelimit-remaining-tokens" in after_prompt.headers


@pytest.mark.usefixtures("_stopped_clock")
async def test_an_answer_whose_client_left_counts(fake: FakeCloud) -> None:
    async with edge_of(fake.url, "edge.quotas.tokens_per_minute=100") as edge:
        events = edge.events("/v1/completions", EDGE_ONLY | {"stream": True, "max_tokens": 200, "ignore_eos": True})
        await anext(events)
        prompt_counted = (await edge.get("/stats", dict))["quotas"][""]["tokens_left"]
        await events.aclose()
        async with asyncio.timeout(20):
            while (left := (await edge.get("/stats", dict))["quotas"][""])["requests_now"]:
                await asyncio.sleep(0.01)
        assert left["tokens_left"] < prompt_counted


async def test_a_key_that_has_used_up_its_cloud_tokens_stays_at_the_edge_also_after_a_restart(
    fake: FakeCloud, tmp_path: Path
) -> None:
    limits = quotas({"cloud_tokens_per_day": 5}, cloud_tokens_per_day=10**6)
    settings = limits, f"inference.budget.database={tmp_path / 'use.sqlite'}"
    async with clients(fake.url, *settings) as edge:
        with_cloud = (await edge.post("/v1/completions", WITH_CLOUD)).body["collaboration"]
        assert with_cloud["cloud_calls"] > 0
        used = (await edge.stats())["costs"]["cloud_tokens_today"][tenant_name(Secret(ANN))]
        assert used >= 5
    async with clients(fake.url, *settings) as edge:
        own, other = [(await edge.post("/v1/completions", WITH_CLOUD, key)).body for key in (ANN, BOB)]
        assert (own["collaboration"]["mode"], own["collaboration"]["cloud_calls"]) == ("edge_only", 0)
        assert own["collaboration"]["mode_because"].startswith("this key's cloud tokens of the day are used up")
        assert other["collaboration"]["cloud_calls"] > 0
    kept = (tmp_path / "use.sqlite").read_bytes()
    assert tenant_name(Secret(ANN)).encode() in kept and not any(key.encode() in kept for key in (ANN, BOB))


async def test_a_spent_day_may_refuse_with_the_time_until_midnight(fake: FakeCloud) -> None:
    settings = quotas({"cloud_tokens_per_day": 1}), "inference.budget.when_spent=refuse"
    async with clients(fake.url, *settings) as edge:
        assert (await edge.post("/v1/completions", WITH_CLOUD)).status == 200
        refused = await edge.post("/v1/completions", WITH_CLOUD)
        assert (refused.status, refused.body["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 0 < int(refused.headers["Retry-After"]) <= 86400
        assert (await edge.post("/v1/completions", EDGE_ONLY)).status == 200
        assert (await edge.post("/v1/rerank", {"model": "cloud", "query": "a", "documents": ["b"]})).status == 429


async def test_a_cloud_with_prices_of_its_own_is_paid_by_them() -> None:
    async with serving_openai() as cheap:
        entry = {"url": cheap.url, "kind": "openai", "prices": {"prompt": 0.5, "completion": 2}}
        settings = f"communication.clouds={json.dumps([entry])}", "communication.prices={prompt: 100, completion: 100}"
        async with edge_of("http://localhost:8081", *settings) as edge:
            answer = await edge.post("/v1/chat/completions", CHAT | {"mode": "cloud_only"}, dict)
        prompt, report = answer["usage"]["prompt_tokens"], answer["collaboration"]
        assert report["cost"] == pytest.approx((0.5 * prompt + 2 * report["tokens"]["cloud"]) / 1e6)


async def test_the_queue_is_told_tenant_and_priority_of_each_request_anew(
    fake: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, add = list[tuple[str, int]](), FairQueue.add

    def noted(queue: FairQueue[Any], item: Any, tenant: str, priority: int) -> None:
        told.append((tenant, priority))
        add(queue, item, tenant, priority)

    monkeypatch.setattr(FairQueue, "add", noted)
    async with clients(fake.url, quotas({})) as edge:
        await edge.post("/v1/completions", EDGE_ONLY | {"priority": -3})
        await edge.post("/v1/chat/completions", CHAT | {"service_tier": "flex"}, BOB)
        await edge.post("/v1/responses", {"input": "a", "mode": "edge_only", "service_tier": "flex"})
        await edge.post("/v1/completions", EDGE_ONLY | {"service_tier": "auto"})
        await edge.post("/v1/chat/completions", CHAT | {"service_tier": "flex"})
        await edge.post("/draft", {"prompt": "word", "max_tokens": 1})
    ann, bob = tenant_name(Secret(ANN)), tenant_name(Secret(BOB))
    assert told == [(ann, -3), (bob, 1), (ann, 1), (ann, 0), (ann, 1), (ann, 0)]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ([{"api_key": ANN}, {"api_key": ANN}], r"edge\.quotas\.keys\[1\]\.api_key: is named twice"),
        ([{"api_key": ""}], r"edge\.quotas\.keys\[0\]\.api_key: is empty"),
        ([{"weight": 2}], r"edge\.quotas\.keys\[0\].*api_key"),
        ([{"api_key": ANN, "weight": 0}], r"edge\.quotas\.keys\[0\]\.weight"),
        ([{"api_key": ANN, "wieght": 1}], r"edge\.quotas\.keys\[0\]\.wieght: unknown key; did you mean 'weight'"),
    ],
)
def test_a_wrong_entry_is_named_by_its_path(keys: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        config.load(flags=["edge.quotas.keys=" + json.dumps(keys)], environment={})


def test_a_key_is_shown_nowhere() -> None:
    shown = config.show(config.load(flags=[quotas({"weight": 2})], environment={}))
    assert "weight: 2" in shown and ANN not in shown
