"""vLLM's own OpenAI routes as a cloud that verifies nothing: those that our cloud server serves."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from common.http.client import HTTPClient
from tests.conftest import Servers
from tests.support.edge_in_process import edge_of

QUESTION = "What is a neural network?"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 32}


def settings(servers: Servers, form: str) -> str:
    clouds = [{"url": f"{servers.cloud_url}/v1", "kind": "openai", "continuation": form}]
    return f"communication.clouds={json.dumps(clouds)}"


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=["text", "message"])
async def edge(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[HTTPClient]:
    async with edge_of(servers.cloud_url, settings(servers, request.param)) as client:
        yield client


async def ask(edge: HTTPClient, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await edge.post("/v1/chat/completions", CHAT | fields, dict)
    return answer


async def test_an_answer_is_the_edges_up_to_the_gate_and_then_the_clouds_own_continuation(
    servers: Servers, edge: HTTPClient
) -> None:
    shown: dict[str, Any] = {"collaboration": {"tokens": True}, "product_threshold": 0}
    alone = (await ask(edge, mode="edge_only", **shown))["choices"][0]["collaboration"]["tokens"]
    gate = min(token["confidence"] for token in alone[1:]) + 1e-9
    answer = await ask(edge, confidence_threshold=gate, **shown)
    tokens = answer["choices"][0]["collaboration"]["tokens"]
    begun = [token["text"] for token in tokens if token["source"] == "edge"]
    rest = [token["text"] for token in tokens if token["source"] == "cloud"]
    assert begun
    assert rest
    prompt = f"<|user|>{QUESTION}<|assistant|>{''.join(begun)}"
    body = {"prompt": prompt, "temperature": 0, "max_tokens": CHAT["max_tokens"] - len(begun)}
    own = await servers.cloud.post("/v1/completions", body | {"add_special_tokens": False}, dict)
    assert "".join(rest) == own["choices"][0]["text"]
    assert answer["collaboration"]["cloud_steps"] == own["usage"]["completion_tokens"]


async def test_the_cloud_alone_answers_as_it_is_asked_directly(servers: Servers, edge: HTTPClient) -> None:
    direct = (await servers.cloud.post("/v1/chat/completions", CHAT, dict))["choices"][0]["message"]["content"]
    for fields in ({"mode": "cloud_only"}, {"mode": "cloud_only", "logprobs": True}):
        assert (await ask(edge, **fields))["choices"][0]["message"]["content"] == direct
