"""Both real servers together: lossless is the cloud's own, token for token, and the API is what clients expect."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest

from common.cloud_client.verifier import CloudVerifier, EdgeDrafter
from common.decoding.pipeline import Pipeline
from common.decoding.policy import Plan
from common.decoding.request import DecodingRequest
from common.http_client import EdgeCloudHTTPClient
from common.protocol.openai import Message
from common.protocol.tokenization import TokenizeReply, TokenizeRequest
from common.types import GREEDY, Collaboration, Mode, VerificationMode
from models.corpus import questions as corpus
from tests.conftest import Servers

PROMPTS = [prompt for _, prompt, _ in random.Random(1).sample(corpus.held_out_pairs(), 100)]
MAX_TOKENS = 96


async def prompt_ids(servers: Servers, prompt: str) -> list[int]:
    question = TokenizeRequest(messages=[Message(role="user", content=prompt)])
    return (await servers.edge.post("/tokenize", question, TokenizeReply)).tokens


async def cloud_alone(servers: Servers, ids: list[int]) -> list[int]:
    """The cloud's own greedy tokens, over its completions route."""
    body = {"prompt": ids, "max_tokens": MAX_TOKENS, "temperature": 0, "return_token_ids": True}
    reply: dict[str, Any] = await servers.cloud.post("/v1/completions", body, dict)
    tokens: list[int] = reply["choices"][0]["token_ids"]
    return tokens


@pytest.mark.timeout(900)
async def test_lossless_greedy_tokens_are_the_clouds_own_at_every_draft_length(servers: Servers) -> None:
    """100 held-out prompts, each with drafts of two of 1, 4, 8 and 16 tokens, four answers at a time, at float32."""
    ids = [await prompt_ids(servers, prompt) for prompt in PROMPTS]
    truths = [await cloud_alone(servers, one) for one in ids]
    assert len({tuple(truth) for truth in truths}) > 50
    drafted = accepted = 0

    async def check(prompt: list[int], truth: list[int], length: int) -> None:
        nonlocal drafted, accepted
        plan = Plan(use_confidence_check=False, max_draft_tokens=length)
        verifier = CloudVerifier(servers.clouds)
        pipeline = Pipeline(DecodingRequest(prompt, MAX_TOKENS, GREEDY, plan), EdgeDrafter(servers.edge), verifier)
        tokens = [token async for chunk in pipeline.run() for token in chunk.token_ids]
        assert pipeline.answer.report.degraded is None
        assert tokens == truth
        drafted += pipeline.answer.report.drafted
        accepted += pipeline.answer.report.accepted

    pairs = list(zip(ids, truths, strict=True))
    jobs = [(*pair, length) for at, pair in enumerate(pairs) for length in ((1, 8), (4, 16))[at % 2]]
    for first in range(0, len(jobs), 4):
        await asyncio.gather(*(check(*job) for job in jobs[first : first + 4]))
    assert 0 < accepted < drafted, "the edge is right and wrong"


@pytest.mark.parametrize("mode", [mode for mode in Mode if mode is not Mode.SPLIT])  # that wants other servers
async def test_an_answer_says_how_it_came_about(servers: Servers, mode: Mode) -> None:
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0, "mode": mode}
    reply: dict[str, Any] = await servers.edge.post("/v1/chat/completions", body, dict)
    report = reply["collaboration"]
    tokens = report["tokens"]
    assert reply["choices"][0]["message"]["content"].startswith("The capital of France is")
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert sum(tokens.values()) == reply["usage"]["completion_tokens"]
    assert report["mode"] == mode
    assert report["degraded"] is None
    if mode is Mode.EDGE_ONLY:
        assert report["cloud_calls"] == report["bytes_up"] == 0
    if mode is Mode.CLOUD_ONLY:
        assert tokens["cloud"] == reply["usage"]["completion_tokens"]


@pytest.mark.parametrize("way", list(VerificationMode))
async def test_each_lossless_way_gives_the_clouds_own_text(servers: Servers, way: VerificationMode) -> None:
    for prompt in PROMPTS[:12]:
        question = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 40, "temperature": 0}
        alone: dict[str, Any] = await servers.cloud.post("/v1/chat/completions", question, dict)
        ours = question | {"use_confidence_check": False, "way": way}
        reply: dict[str, Any] = await servers.edge.post("/v1/chat/completions", ours, dict)
        assert reply["choices"][0]["message"]["content"] == alone["choices"][0]["message"]["content"]
        assert reply["collaboration"]["degraded"] is None
        assert way is VerificationMode.AUTO or reply["collaboration"]["way"] == way


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", [VerificationMode.ROUNDS, VerificationMode.CONTINUOUS])
async def test_each_token_tells_its_source_if_asked(servers: Servers, way: VerificationMode, stream: bool) -> None:
    ids = await prompt_ids(servers, "Explain deep learning")
    body: dict[str, Any] = {"prompt": ids, "max_tokens": 24, "temperature": 0, "way": way}
    body |= {"use_confidence_check": False, "collaboration": {"tokens": True}}
    if stream:
        chunks = [json.loads(event) async for event in servers.edge.events("/v1/completions", body | {"stream": True})]
    else:
        chunks = [await servers.edge.post("/v1/completions", body, dict)]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    tokens = [token for choice in choices for token in choice.get("collaboration", {}).get("tokens", [])]
    assert "".join(token["text"] for token in tokens).startswith("".join(choice["text"] for choice in choices))
    counted = Counter(token["source"] for token in tokens)
    assert counted == {source: n for source, n in chunks[-1]["collaboration"]["tokens"].items() if n}
    assert counted["accepted"] > 0
    assert all((token["confidence"] is not None) == (token["source"] == "accepted") for token in tokens)


async def test_the_edges_counters_are_the_sum_of_its_reports(servers: Servers) -> None:
    async def counted() -> dict[str, float]:
        async with aiohttp.ClientSession() as session, session.get(servers.edge_url + "/metrics") as answer:
            lines = [line.rpartition(" ") for line in (await answer.text()).splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    before = await counted()
    body = {"prompt": "Explain deep", "max_tokens": 24, "temperature": 0, "use_confidence_check": False}
    reply: dict[str, Any] = await servers.edge.post("/v1/completions", body, dict)
    after, report = await counted(), reply["collaboration"]
    for name in ("drafted_tokens", "accepted_tokens", "edge_drawn_tokens", "edge_wasted_tokens", "cloud_steps"):
        key = f"edgecloud_{name}_total"
        assert after[key] - before[key] == report[name.removesuffix("_tokens")]
    for source, count in report["tokens"].items():
        key = f'edgecloud_answer_tokens_total{{provenance="{source}"}}'
        assert after[key] - before[key] == count


async def test_seeded_sampling_is_reproducible_over_the_whole_pipeline(servers: Servers) -> None:
    texts = []
    for seed in (1, 2, 3, 1, 2, 3):
        body = {"prompt": "The", "max_tokens": 24, "temperature": 2.0, "seed": seed, "use_confidence_check": False}
        reply: dict[str, Any] = await servers.edge.post("/v1/completions", body, dict)
        assert reply["collaboration"]["lossless"]
        texts.append(reply["choices"][0]["text"])
    assert texts[:3] == texts[3:]
    assert len(set(texts)) == 3


async def test_the_openai_client_works_unmodified(servers: Servers) -> None:
    async with openai.AsyncOpenAI(base_url=servers.edge_url + "/v1", api_key="none") as client:
        assert (await client.models.list()).data[0].id == "demo-edge"
        question: Any = [{"role": "user", "content": "What is machine learning?"}]
        whole = await client.chat.completions.create(
            model="demo-edge", messages=question, temperature=0, extra_body={"use_confidence_check": False}
        )
        stream = await client.chat.completions.create(
            model="demo-edge",
            messages=question,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"use_confidence_check": False},
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage is not None and whole.usage is not None
        assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
        stopped = await client.completions.create(
            model="demo-edge", prompt="<|user|>What is AI?<|assistant|>", max_tokens=40, temperature=0, stop=" is"
        )
        assert " is" not in stopped.choices[0].text
        assert stopped.choices[0].finish_reason == "stop"
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="another", messages=question)
        with pytest.raises(openai.BadRequestError, match="context"):
            await client.chat.completions.create(
                model="demo-edge", messages=[{"role": "user", "content": "word " * 3000}]
            )


async def test_the_full_pipeline_runs_from_a_client_too(servers: Servers) -> None:
    async with EdgeCloudHTTPClient(servers.edge_url, servers.cloud_url) as client:
        result = await client.full_inference_pipeline(prompt="What is AI?", max_tokens=64, temperature=0.0)
    assert result.text.startswith("Artificial intelligence")
    assert result.total_latency_ms > result.edge_latency_ms > 0
    assert 0 < result.confidence_score <= 1


@pytest.fixture
async def edge_without_cloud() -> AsyncIterator[str]:
    from common import config
    from common.http_server import HTTPServer
    from edge.edge_server import build_app

    lonely = config.load(flags=["communication.cloud_endpoint=http://127.0.0.1:1"], environment={})
    server = HTTPServer(build_app(lonely), "127.0.0.1", 0)
    await server.start()
    yield f"http://127.0.0.1:{server.port}"
    await server.stop()


async def test_without_the_cloud_the_edge_answers_alone_and_says_why(edge_without_cloud: str) -> None:
    body = {"messages": [{"role": "user", "content": "What is AI?"}], "temperature": 0, "use_confidence_check": False}
    async with (
        aiohttp.ClientSession() as session,
        session.post(edge_without_cloud + "/v1/chat/completions", json=body) as response,
    ):
        reply = await response.json()
    assert response.status == 200
    assert reply["choices"][0]["message"]["content"]
    assert "cannot reach http://127.0.0.1:1" in reply["collaboration"]["degraded"]
    assert not reply["collaboration"]["lossless"]


async def test_the_combined_report_is_the_sum_of_its_choices(servers: Servers) -> None:
    body = {"messages": [{"role": "user", "content": "What is AI?"}], "n": 3, "temperature": 0.5, "seed": 1}
    reply: dict[str, Any] = await servers.edge.post("/v1/chat/completions", body, dict)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert sum(reply["collaboration"]["tokens"].values()) == reply["usage"]["completion_tokens"]
    assert set(reply["collaboration"]) == set(Collaboration.__struct_fields__)
