"""The cloud's routes over HTTP on a real engine: tenants, batches, streams, admission, metrics, bad bodies."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from cloud.cloud_server import build_app
from cloud.engine.engine import CloudEngine
from common.config_cloud import AdmissionConfig, CloudConfig, EngineConfig
from common.config_values import Secret, ServerConfig
from common.http_server import HTTPServer
from common.protocol import codec
from common.protocol.prefix_hash import prefix_hash
from common.types import VerifyBatchRequest, VerifyBatchResponse, VerifyRequest, VerifyResponse

pytestmark = pytest.mark.asyncio(loop_scope="session")

ALPHA = {"Authorization": "Bearer alpha"}
BETA = {"Authorization": "Bearer beta"}
LONG = [n + 5 for n in range(200)]
ENDLESS = {"prompt": "Explain deep learning", "max_tokens": 200, "ignore_eos": True, "stream": True}


class Borrowed(CloudEngine):
    """The engine of other tests, which keeps running when this application ends."""

    def __init__(self, lender: CloudEngine) -> None:
        self.__dict__ = lender.__dict__

    async def start(self) -> None:
        """Does nothing: it runs already."""

    async def close(self) -> None:
        """Does nothing: other tests use it."""

    def kill(self) -> None:
        raise AssertionError("the engine is alive")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def url(cloud_engine: CloudEngine) -> AsyncIterator[str]:
    config = CloudConfig(
        server=ServerConfig(host="127.0.0.1", port=0, api_keys=[Secret("alpha"), Secret("beta")]),
        admission=AdmissionConfig(max_requests=4, max_tokens=1500),
        engine=EngineConfig(hang_seconds=60),
    )
    server = HTTPServer(build_app(Borrowed(cloud_engine), config), "127.0.0.1", 0)
    await server.start()
    yield f"http://127.0.0.1:{server.port}"
    await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(url, headers=ALPHA) as session:
        while (await session.get("/ready")).status != 200:
            await asyncio.sleep(0.05)
        yield session


async def stats(http: aiohttp.ClientSession) -> dict[str, Any]:
    async with http.get("/stats") as response:
        return dict(await response.json())


async def idle(http: aiohttp.ClientSession, engine: CloudEngine) -> None:
    """Returns when no request runs and no KV is held, which vLLM reports after the step of one more small request."""
    async with asyncio.timeout(10):
        while True:
            async with http.post("/verify", json={"new_token_ids": [5]}) as response:
                assert response.status in (200, 429)
            now = await stats(http)
            if response.status == 200 and (now["running"], now["kv_cache_usage"]) == (0, 0):
                return
            await asyncio.sleep(0.05)


async def test_a_request_without_a_valid_key_is_refused(url: str, http: aiohttp.ClientSession) -> None:
    async with aiohttp.ClientSession(url) as stranger:
        for path in ("/verify", "/v1/completions", "/stats", "/metrics"):
            async with stranger.post(path, json={}, headers={"Authorization": "Bearer gamma"}) as response:
                assert response.status == 401
                assert (await response.json())["error"]["code"] == "invalid_api_key"
        assert (await stranger.get("/ready")).status == 200


async def test_stats_say_what_was_chosen_for_the_machine_and_why(http: aiohttp.ClientSession) -> None:
    hardware = (await stats(http))["hardware"]
    given = "set in the configuration"
    assert hardware["dtype"] == {"value": "float32", "why": given}
    assert hardware["kv_cache_bytes"] == {"value": 1 << 26, "why": given}


async def test_tenants_do_not_share_a_prefix_cache(http: aiohttp.ClientSession) -> None:
    hits = [(await stats(http))["prefix_cache_hits"]]
    for key in (ALPHA, BETA, ALPHA, BETA):
        async with http.post("/verify", json={"new_token_ids": LONG}, headers=key) as response:
            assert response.status == 200
        hits.append((await stats(http))["prefix_cache_hits"])
    assert hits[0] == hits[1] == hits[2] < hits[3] < hits[4]


async def test_the_tenants_of_one_edge_do_not_share_a_prefix_cache(http: aiohttp.ClientSession) -> None:
    hits = [(await stats(http))["prefix_cache_hits"]]
    for tenant in ("ann", "bob", "ann"):
        async with http.post("/verify", json={"new_token_ids": LONG[::-1], "tenant": tenant}) as response:
            assert response.status == 200
        hits.append((await stats(http))["prefix_cache_hits"])
    assert hits[0] == hits[1] == hits[2] < hits[3]


async def test_tenants_do_not_share_sessions(http: aiohttp.ClientSession) -> None:
    first = VerifyRequest(session="shared", new_token_ids=LONG[:9])
    async with http.post("/verify", data=msgspec.json.encode(first), headers=ALPHA) as response:
        assert response.status == 200
    again = VerifyRequest(session="shared", prefix_length=9, prefix_hash=prefix_hash(LONG[:9]), new_token_ids=[7])
    for key, status in ((BETA, 409), (ALPHA, 200)):
        async with http.post("/verify", data=msgspec.json.encode(again), headers=key) as response:
            assert response.status == status


async def test_json_and_messagepack_say_the_same(http: aiohttp.ClientSession) -> None:
    asked = VerifyRequest(new_token_ids=LONG[:20], draft_token_ids=[9, 9], logprobs=2)
    answers = []
    for kind in (codec.JSON, codec.MSGPACK):
        headers = {"Content-Type": kind}
        async with http.post("/verify", data=codec.encode(asked, kind), headers=headers) as response:
            assert response.content_type == kind
            answers.append(codec.decode(await response.read(), VerifyResponse, kind))
    assert msgspec.structs.replace(answers[0], latency_ms=0.0) == msgspec.structs.replace(answers[1], latency_ms=0.0)


async def test_one_failing_item_of_a_batch_does_not_affect_the_others(http: aiohttp.ClientSession) -> None:
    good, bad = VerifyRequest(new_token_ids=LONG[:20]), VerifyRequest(new_token_ids=[-1])
    body = msgspec.json.encode(VerifyBatchRequest([good, bad, good]))
    async with http.post("/verify/batch", data=body) as response:
        assert response.status == 200
        items = codec.decode(await response.read(), VerifyBatchResponse).responses
    assert items[0].response and items[2].response
    assert items[0].response.token_ids == items[2].response.token_ids
    assert items[1].error and items[1].error.param == "new_token_ids"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_stream_says_what_the_whole_answer_says(http: aiohttp.ClientSession, path: str) -> None:
    chat = path.endswith("chat/completions")
    question = {"messages": [{"role": "user", "content": "What is AI?"}]} if chat else {"prompt": "Explain deep"}
    body = {**question, "max_tokens": 30, "temperature": 0}
    async with http.post(path, json=body) as response:
        whole = (await response.json())["choices"][0]
    pieces, usage = [], None
    async with http.post(path, json={**body, "stream": True, "stream_options": {"include_usage": True}}) as response:
        assert response.content_type == "text/event-stream"
        lines = [line.decode().strip().removeprefix("data: ") async for line in response.content if line.strip()]
    assert lines.pop() == "[DONE]"
    for line in map(json.loads, lines):
        usage = line.get("usage") or usage
        for choice in line["choices"]:
            pieces.append((choice["delta"].get("content") if chat else choice["text"]) or "")
    assert "".join(pieces) == (whole["message"]["content"] if chat else whole["text"])
    assert usage and usage["completion_tokens"] <= 30


async def test_a_client_that_leaves_a_stream_frees_its_place_and_kv(
    http: aiohttp.ClientSession, cloud_engine: CloudEngine
) -> None:
    for _ in range(3):
        response = await http.post("/v1/completions", json=ENDLESS)
        await response.content.readline()
        response.close()
    await idle(http, cloud_engine)


async def test_a_full_server_says_when_to_try_again(http: aiohttp.ClientSession, cloud_engine: CloudEngine) -> None:
    responses = [await http.post("/v1/completions", json=ENDLESS) for _ in range(6)]
    refused = [response for response in responses if response.status == 429]
    assert len(refused) == 2
    assert all(int(response.headers["Retry-After"]) >= 1 for response in refused)
    assert (await refused[0].json())["error"]["code"] == "overloaded"
    unread = await http.post("/v1/completions", data=b"no JSON", headers={"Content-Type": "application/json"})
    assert unread.status == 429, "the head alone tells that there is no room"
    for response in responses:
        response.close()
    await idle(http, cloud_engine)


async def test_more_sequences_than_the_server_can_ever_hold_are_a_bad_request(http: aiohttp.ClientSession) -> None:
    for body in ({"prompt": "a", "n": 5}, {"prompt": ["a"] * 5}, {"prompt": [[1]] * 3, "n": 2}):
        async with http.post("/v1/completions", json=body) as response:
            assert (response.status, (await response.json())["error"]["param"]) == (400, "n")


async def test_metrics_include_this_projects_and_vllms(http: aiohttp.ClientSession) -> None:
    async with http.get("/metrics") as response:
        families = {family.name: family for family in text_string_to_metric_families(await response.text())}
    assert {"edgecloud_verify_seconds", "edgecloud_drafted_tokens", "edgecloud_http_requests"} <= families.keys()
    assert {"vllm:num_requests_running", "vllm:prefix_cache_queries", "vllm:kv_cache_usage_perc"} <= families.keys()
    verified = {s.labels["form"]: s.value for s in families["edgecloud_verify_seconds"].samples if "count" in s.name}
    assert sum(verified.values()) > 0


HUGE = 2**63
BAD_ROUNDS: list[dict[str, Any]] = [
    {"new_token_ids": [1], "max_tokens": -1},
    {"new_token_ids": [1], "max_tokens": HUGE * 2},
    {"new_token_ids": [1], "prefix_length": -5},
    {"new_token_ids": [1], "prefix_length": HUGE, "session": "s"},
    {"new_token_ids": [2**31]},
    {"new_token_ids": [HUGE]},
    {"new_token_ids": ["1"]},
    {"new_token_ids": [1], "draft_token_ids": [1] * 17},
    {"new_token_ids": [1], "draft_token_ids": [2**40]},
    {"new_token_ids": [1], "sampling": {"temperature": 3e38}},
    {"new_token_ids": [1], "sampling": {"top_k": 2**40}},
    {"new_token_ids": [1], "sampling": {"seed": 2**64}},
    {"new_token_ids": [1], "sampling": {"grammar": {"kind": "json", "text": "[" * 60_000}}},
    {"new_token_ids": [1], "sampling": {"grammar": {"kind": "json", "text": '{"type": 5}'}}},
    {"new_token_ids": [1], "sampling": {"grammar": {"kind": "choice", "text": "[1"}}},
    {"new_token_ids": [1], "sampling": {"grammar": {"kind": "regex", "text": "("}}},
    {"new_token_ids": [1], "logprobs": 10**9},
    {"new_token_ids": [1], "unknown": 1},
    {"new_token_ids": [1] * 300},
    {"prompt": 5},
    {},
    [],  # type: ignore[list-item]
]
BAD_GENERATIONS: list[dict[str, Any]] = [
    {"prompt": "a", "max_tokens": -1},
    {"prompt": "a", "max_tokens": 2**70},
    {"prompt": "a", "temperature": -1},
    {"prompt": "a", "temperature": 1e300},
    {"prompt": "a", "top_p": 7},
    {"prompt": "a", "seed": 2**80},
    {"prompt": "a", "n": 10**9},
    {"prompt": "a", "n": -1},
    {"prompt": "a", "logprobs": 10**6},
    {"prompt": "a", "min_p": 0.5},
    {"prompt": "a", "logit_bias": {"5": 1}},
    {"prompt": "a", "vllm_xargs": {"draft_token_ids": [1]}},
    {"prompt": "a", "stop_token_ids": [2**40]},
    {"prompt": "a", "truncate_prompt_tokens": -(2**40)},
    {"prompt": [2**40]},
    {"prompt": [-1]},
    {"prompt": [[], []]},
    {"prompt": {"a": 1}},
    {"prompt": "a", "cache_salt": 5},
    {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}}},
    {"prompt": "a", "model": "no-such-model"},
    {},
]


@pytest.mark.parametrize("body", BAD_ROUNDS, ids=lambda b: json.dumps(b)[:60])
async def test_a_bad_round_is_refused_and_the_next_good_one_succeeds(
    http: aiohttp.ClientSession, body: dict[str, Any]
) -> None:
    await refused(http, "/verify", body)


@pytest.mark.parametrize("body", BAD_GENERATIONS, ids=lambda b: json.dumps(b)[:60])
async def test_a_bad_generation_is_refused_and_the_next_good_one_succeeds(
    http: aiohttp.ClientSession, body: dict[str, Any]
) -> None:
    await refused(http, "/v1/completions", body)


async def refused(http: aiohttp.ClientSession, path: str, body: object) -> None:
    async with http.post(path, json=body) as response:
        assert 400 <= response.status < 500, await response.text()
        error = (await response.json())["error"]
        assert error["type"] == "invalid_request_error"
        assert error["message"]
    async with http.post("/verify", json={"new_token_ids": [5, 6], "draft_token_ids": [7]}) as response:
        assert response.status == 200


async def test_without_a_split_model_its_route_says_what_to_set(http: aiohttp.ClientSession) -> None:
    refused = await http.get("/split")
    assert refused.status == 404
    assert "cloud.split.manifest" in (await refused.json())["error"]["message"]
