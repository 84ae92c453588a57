"""A real edge whose vocabulary is not the cloud's: its answers are the cloud's own all the same."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from common.errors import RequestError, VocabularyError
from common.http.client import HTTPClient
from common.http_client import EdgeCloudHTTPClient
from common.protocol.vocabulary import GREETING, Relation, VocabularyInfo, compare
from common.types import VerifyRequest, VerifyResponse
from models.corpus import questions as corpus
from tests.conftest import Servers
from tests.support.edge_in_process import edge_of

PROMPTS = [prompt for _, prompt, _ in random.Random(2).sample(corpus.held_out_pairs(), 40)]
LOSSLESS = {"use_confidence_check": False}
OTHER = "edge.model.path=models/demo-edge-other.gguf"


@pytest.fixture
async def other(servers: Servers) -> AsyncIterator[HTTPClient]:
    async with edge_of(servers.cloud_url, OTHER) as client:
        yield client


async def ask(server: HTTPClient, prompt: str, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 96} | fields
    answer: dict[str, Any] = await server.post("/v1/chat/completions", body, dict)
    return answer


def text(answer: dict[str, Any]) -> str:
    content: str = answer["choices"][0]["message"]["content"]
    return content


async def test_the_demo_pair_is_identical_and_the_other_edge_is_not(servers: Servers, other: HTTPClient) -> None:
    pair, cloud, another = [await one.get("/tokenizer", VocabularyInfo) for one in (servers.edge, servers.cloud, other)]
    assert compare(pair, cloud) is Relation.IDENTICAL
    assert compare(another, cloud) is Relation.DIFFERENT
    greeting = {"messages": [{"role": "user", "content": GREETING}]}
    assert cloud.greeting == (await servers.edge.post("/tokenize", greeting, dict[str, Any]))["tokens"]


@pytest.mark.timeout(600)
async def test_lossless_greedy_text_is_the_clouds_own(servers: Servers, other: HTTPClient) -> None:
    """40 held-out prompts, drafts of 1 to 16, four answers at a time, at float32."""
    truths: dict[str, dict[str, Any]] = {}
    drafted = accepted = 0

    async def check(prompt: str, length: int) -> None:
        nonlocal drafted, accepted
        truth = truths[prompt]
        answer = await ask(other, prompt, **LOSSLESS, max_draft_tokens=length)
        report = answer["collaboration"]
        assert report["degraded"] is None and report["lossless"]
        assert text(answer) == text(truth)
        counted = {name: answer["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
        assert counted == {name: truth["usage"][name] for name in counted}, "counted in the cloud's tokens"
        assert answer["choices"][0]["finish_reason"] == truth["choices"][0]["finish_reason"]
        drafted, accepted = drafted + report["drafted"], accepted + report["accepted"]

    for prompt in PROMPTS:
        truths[prompt] = await ask(servers.cloud, prompt)
        truths[prompt]["usage"] = {
            name: truths[prompt]["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        }
    jobs = [(prompt, length) for length in (1, 8, 16) for prompt in PROMPTS]
    for first in range(0, len(jobs), 4):
        await asyncio.gather(*(check(*job) for job in jobs[first : first + 4]))
    print(f"acceptance of drafts in another vocabulary: {accepted} of {drafted}, {accepted / drafted:.2f}")
    assert 0 < accepted < drafted, "the edge is right and wrong"


@pytest.mark.parametrize("odd", ["naïve café 東京 🙂 12,345", "<|end|><|im_end|> written out", "  two  spaces\n\n"])
async def test_odd_prompts_are_answered_as_the_cloud_does(servers: Servers, other: HTTPClient, odd: str) -> None:
    truth = text(await ask(servers.cloud, odd))
    assert text(await ask(other, odd, **LOSSLESS)) == truth
    assert text(await ask(other, odd, mode="cloud_only")) == truth
    prompt = {"prompt": f"{odd} and", "temperature": 0, "max_tokens": 24}
    of_cloud: dict[str, Any] = await servers.cloud.post("/v1/completions", prompt, dict)
    of_edge: dict[str, Any] = await other.post("/v1/completions", prompt | LOSSLESS, dict)
    assert of_edge["choices"][0]["text"] == of_cloud["choices"][0]["text"]


async def test_gated_answers_keep_sure_tokens_and_schemas_hold(other: HTTPClient) -> None:
    sure = await ask(other, "What is the capital of France?", confidence_threshold=0.0)
    assert sure["collaboration"]["tokens"]["edge"] > 0
    assert sum(sure["collaboration"]["tokens"].values()) == sure["usage"]["completion_tokens"]
    alone = await ask(other, "What is the capital of France?", mode="edge_only")
    assert alone["collaboration"]["cloud_calls"] == 0 and text(alone)


async def test_token_ids_that_mean_something_to_one_side_only_are_answered_by_it(other: HTTPClient) -> None:
    with pytest.raises(RequestError, match="different vocabularies"):
        await other.post("/v1/completions", {"prompt": [1, 2, 3], "mode": "collaborative"} | LOSSLESS, dict)
    alone = await other.post("/v1/completions", {"prompt": [40, 41], "max_tokens": 2} | LOSSLESS, dict)
    assert (alone["collaboration"]["mode"], alone["collaboration"]["lossless"]) == ("edge_only", False)
    assert "different vocabularies" in alone["collaboration"]["mode_because"]
    await other.post("/v1/completions", {"prompt": [40, 41], "mode": "edge_only", "max_tokens": 2}, dict)


async def test_the_pipeline_of_a_client_refuses_different_vocabularies(servers: Servers, other: HTTPClient) -> None:
    async with EdgeCloudHTTPClient(other.base_url, servers.cloud_url) as client:
        with pytest.raises(VocabularyError, match="different vocabularies"):
            await client.full_inference_pipeline("What is AI?")


async def test_the_cloud_refuses_ids_of_another_vocabulary(servers: Servers) -> None:
    mine = await servers.cloud.get("/tokenizer", VocabularyInfo)
    right = VerifyRequest(session="s", new_token_ids=[5, 6], draft_token_ids=[7], vocabulary=mine.fingerprint)
    assert (await servers.cloud.post("/verify", right, VerifyResponse)).token_ids
    wrong = VerifyRequest(session="t", new_token_ids=[5, 6], draft_token_ids=[7], vocabulary="another")
    with pytest.raises(VocabularyError):
        await servers.cloud.post("/verify", wrong, VerifyResponse)


async def test_without_a_cloud_the_other_edge_answers_alone() -> None:
    async with edge_of("http://127.0.0.1:1", OTHER) as lonely:
        answer = await ask(lonely, "What is the capital of France?", **LOSSLESS)
    assert text(answer)
    assert "cannot reach http://127.0.0.1:1" in answer["collaboration"]["degraded"]
    assert answer["collaboration"]["cloud_calls"] == 0
