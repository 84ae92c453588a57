"""A real edge server and a cloud without a model: how lost clouds are reported, and what never leaves the edge."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from benchmarks.fake_cloud import FakeCloud
from common.config_schema import CommunicationConfig
from common.errors import ConfigError, EndpointError, RequestError
from common.http.client import HTTPClient
from common.http_client import EdgeCloudHTTPClient
from common.protocol import codec
from experiments.harness.delay_proxy import DelayProxy
from tests.support.edge_in_process import edge_of

ASK: dict[str, Any] = {"prompt": "What is AI?", "max_tokens": 12, "temperature": 0, "use_confidence_check": False}
SECRET = {"messages": [{"role": "user", "content": "My number is 123-45-6789, is it safe?"}], "max_tokens": 8}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge(fake: FakeCloud) -> AsyncIterator[HTTPClient]:
    async with edge_of(fake.url, r"inference.private_patterns=['\b\d{3}-\d{2}-\d{4}\b', '(?i)top secret']") as made:
        yield made


async def completion(edge: HTTPClient, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await edge.post("/v1/completions", ASK | fields, dict)
    return answer


async def metrics(edge: HTTPClient) -> dict[str, float]:
    async with edge.session().get(edge.base_url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


# What stays on the edge


async def test_a_request_for_privacy_is_answered_by_the_edge_alone(edge: HTTPClient, fake: FakeCloud) -> None:
    before = len(fake.asked)
    report = (await completion(edge, privacy="edge_only"))["collaboration"]
    assert len(fake.asked) == before
    assert (report["mode"], report["lossless"], report["cloud_calls"]) == ("edge_only", False, 0)
    assert (await completion(edge))["collaboration"]["cloud_calls"] > 0
    assert len(fake.asked) > before, "without privacy the same prompt goes to the cloud"


@pytest.mark.parametrize("mode", ["collaborative", "cloud_only"])
async def test_a_prompt_that_matches_a_pattern_never_leaves_the_edge(
    edge: HTTPClient, fake: FakeCloud, mode: str
) -> None:
    before = len(fake.asked) + len(fake.starts)
    chat: dict[str, Any] = await edge.post("/v1/chat/completions", SECRET | {"mode": mode}, dict)
    ids = (await edge.post("/tokenize", {"prompt": "this is Top Secret"}, dict))["tokens"]
    reports = [chat["collaboration"]]
    for prompt in ("a TOP SECRET plan", ids, ["harmless", "123-45-6789"][1:]):
        reports.append((await completion(edge, prompt=prompt, mode=mode))["collaboration"])
    assert [report["mode"] for report in reports] == ["edge_only"] * 4
    assert len(fake.asked) + len(fake.starts) == before


async def test_of_several_prompts_only_the_private_ones_stay(edge: HTTPClient, fake: FakeCloud) -> None:
    rounds, streams = len(fake.asked), len(fake.starts)
    await completion(edge, prompt=["What is AI?", "top secret"], max_tokens=4, way="rounds")
    await completion(edge, prompt=["What is AI?", "top secret"], max_tokens=4, mode="cloud_only")
    assert len({one.session for one in fake.asked[rounds:]}) == 1
    assert len(fake.starts) == streams + 1


async def test_without_patterns_the_same_prompt_goes_to_the_cloud(fake: FakeCloud) -> None:
    before = len(fake.asked)
    async with edge_of(fake.url) as edge:
        await edge.post("/v1/chat/completions", SECRET | {"use_confidence_check": False}, dict)
    assert len(fake.asked) > before


async def test_privacy_with_mode_cloud_only_is_refused(edge: HTTPClient) -> None:
    with pytest.raises(RequestError) as error:
        await completion(edge, privacy="edge_only", mode="cloud_only")
    assert error.value.param == "privacy"


# Report, stats and metrics


async def test_a_lost_cloud_and_its_return_show_in_report_stats_and_metrics(fake: FakeCloud) -> None:
    async with DelayProxy("127.0.0.1", int(fake.url.rpartition(":")[2])) as proxy:
        label = f'{{endpoint="{proxy.url}"'
        settings = ["communication.breaker.failures=1", "communication.breaker.probe_seconds=0.1"]
        async with edge_of(proxy.url, *settings) as edge:
            before = await metrics(edge)
            assert before[f'edgecloud_breaker_state{label},state="closed"}}'] == 1
            assert before[f'edgecloud_cloud_calls_total{label},outcome="failed"}}'] == 0
            fake.ready = False
            for _ in range(2):
                report = (await completion(edge))["collaboration"]
                assert "the engine is starting" in report["degraded"]
                assert not report["lossless"]
            found = await metrics(edge)
            assert found[f"edgecloud_breaker_openings_total{label}}}"] == 1
            assert found[f'edgecloud_breaker_state{label},state="closed"}}'] == 0
            assert found[f'edgecloud_cloud_calls_total{label},outcome="failed"}}'] == 1, "the second did not ask"
            assert found["edgecloud_degraded_answers_total"] == 2
            assert found[f"edgecloud_cloud_bytes_up_total{label}}}"] > 0
            stats: dict[str, Any] = (await edge.get("/stats", dict))["clouds"]
            assert stats["degraded_answers"] == 2
            assert stats["endpoints"][proxy.url]["breaker"]["openings"] == 1
            fake.ready = True
            async with asyncio.timeout(10):
                while not (await completion(edge))["collaboration"]["lossless"]:
                    await asyncio.sleep(0.02)
            found = await metrics(edge)
            assert found[f'edgecloud_breaker_state{label},state="closed"}}'] == 1
            assert found[f'edgecloud_cloud_calls_total{label},outcome="ok"}}'] > 0


async def test_metrics_have_a_series_for_every_cloud_and_outcome_from_the_start(fake: FakeCloud) -> None:
    async with edge_of(fake.url, "communication.cloud_endpoints=['http://127.0.0.1:9']") as edge:
        found = await metrics(edge)
    for url in (fake.url, "http://127.0.0.1:9"):
        for outcome in ("ok", "refused", "busy", "failed", "cancelled"):
            assert f'edgecloud_cloud_calls_total{{endpoint="{url}",outcome="{outcome}"}}' in found
        for name in ("breaker_openings", "cloud_retries", "cloud_bytes_up", "cloud_bytes_down"):
            assert f'edgecloud_{name}_total{{endpoint="{url}"}}' in found


# Fallback off


async def test_without_fallback_a_lost_cloud_is_an_error_to_the_client() -> None:
    async with edge_of("http://127.0.0.1:9", "inference.fallback=false") as edge:
        with pytest.raises(EndpointError, match="502: cannot reach"):
            await completion(edge)
        with pytest.raises(EndpointError, match="cannot reach"):
            async for _ in edge.events("/v1/completions", ASK | {"stream": True}):
                pass
        assert (await completion(edge, mode="edge_only"))["choices"][0]["text"], "the edge alone is not concerned"


async def test_a_stream_cut_in_the_middle_is_completed_with_fallback_and_an_error_without(fake: FakeCloud) -> None:
    for fallback in (True, False):
        async with (
            DelayProxy("127.0.0.1", int(fake.url.rpartition(":")[2])) as proxy,
            edge_of(proxy.url, f"inference.fallback={fallback}", "inference.max_draft_tokens=1") as edge,
        ):
            events, error = [], None
            try:
                async for event in edge.events("/v1/completions", ASK | {"stream": True, "max_tokens": 40}):
                    events.append(json.loads(event))
                    await proxy.stop()
            except EndpointError as raised:
                error = raised
        finished = [event["choices"][0]["finish_reason"] for event in events if event["choices"]][-1]
        assert (error is None) == fallback
        assert (finished is not None) == fallback


# Start


async def test_a_cloud_of_another_version_fails_the_start_with_a_one_line_error(fake: FakeCloud) -> None:
    fake.protocol = "99"
    try:
        with pytest.raises(ConfigError, match=r"^communication\.cloud_endpoint: .* speaks protocol '99'"):
            async with edge_of(fake.url):
                pass
    finally:
        fake.protocol = codec.PROTOCOL


# From a client


async def test_many_prompts_at_once_are_answered_in_order(edge: HTTPClient, fake: FakeCloud) -> None:
    prompts = ["What is AI?", "How does ML work?", "Explain deep learning."] * 2
    async with EdgeCloudHTTPClient(edge.base_url, fake.url) as client:
        alone = [await client.full_inference_pipeline(p, max_tokens=6, temperature=0) for p in prompts[:3]]
        batch = await client.batch_inference(prompts, concurrency=2, max_tokens=6, temperature=0)
        gathered = await asyncio.gather(
            *(client.full_inference_pipeline(prompt=p, max_tokens=6, temperature=0) for p in prompts)
        )
        stats = client.get_client_stats()
    assert [one.text for one in batch] == [one.text for one in alone] * 2 == [one.text for one in gathered]
    assert stats["edge"]["total_requests"] > 0
    assert stats["clouds"]["endpoints"][fake.url]["failed_requests"] == 0


async def test_a_batch_keeps_its_concurrency_and_ends_with_its_first_failure(fake: FakeCloud) -> None:
    class Counting(EdgeCloudHTTPClient):
        now = most = left = 0

        async def full_inference_pipeline(self, prompt: str, **options: Any) -> Any:
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                await asyncio.sleep(60 if prompt == "slow" else 0.01)
            finally:
                self.now -= 1
            if prompt == "bad":
                raise EndpointError("lost")
            return prompt

    client = Counting()
    assert await client.batch_inference([str(n) for n in range(20)], concurrency=3) == [str(n) for n in range(20)]  # type: ignore[comparison-overlap]
    assert client.most == 3
    with pytest.raises(EndpointError, match="lost"):
        await client.batch_inference(["slow", "bad", "slow"])
    assert client.now == 0


async def test_a_client_keeps_private_prompts_from_the_cloud_too(edge: HTTPClient, fake: FakeCloud) -> None:
    before = len(fake.asked)
    async with EdgeCloudHTTPClient(edge.base_url, fake.url, private_patterns=["(?i)secret"]) as client:
        kept = await client.full_inference_pipeline("A Secret?", max_tokens=4, use_confidence_check=False)
        assert len(fake.asked) == before
        await client.full_inference_pipeline("A question?", max_tokens=4, use_confidence_check=False)
    assert len(fake.asked) > before
    assert kept.collaboration.mode == "edge_only"


async def test_a_client_of_several_clouds_continues_with_the_next(edge: HTTPClient, fake: FakeCloud) -> None:
    prompt, options = "What is AI?", {"max_tokens": 6, "temperature": 0.0, "use_confidence_check": False}
    communication = CommunicationConfig(cloud_endpoint="http://127.0.0.1:9", cloud_endpoints=[fake.url])
    async with EdgeCloudHTTPClient(edge.base_url, communication=communication) as client:
        results = await client.batch_inference([prompt, "Hello", "Why?", "Explain deep learning."], **options)  # type: ignore[arg-type]
        assert all(one.collaboration.degraded is None for one in results)
        assert client.clouds.degraded_answers == 0
