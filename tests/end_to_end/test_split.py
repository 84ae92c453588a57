"""Both halves of a split model, real ones, over HTTP: together they answer as the whole, many at once as each alone."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from common.http.client import HTTPClient
from tests.support.edge_in_process import edge_of
from tests.support.split.split_parts import WholeModel, served

QUESTIONS = (
    "What is AI?",
    "What is the capital of France?",
    "Explain quantum computing",
    "Sort 31, 7, 64.",
    "What is 12 + 30?",
    "What port does SSH use?",
    "Reverse: cloud edge model layer",
    "What is the day after 30 April?",
)
LENGTH = 24
NEAR = 0.02
"""Natural log probability by which another token may be likelier to the whole model, where fp16 rounded a state."""

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge(demo_split: Path) -> AsyncIterator[HTTPClient]:
    settings = "edge.model.kv_type=f32", "edge.model.sequences=8", "edge.split.deadline_ms=60000"
    async with served(demo_split) as (server, _):
        url = f"http://127.0.0.1:{server.port}"
        async with edge_of(url, f"edge.split.manifest={demo_split}", *settings) as client:
            yield client


async def ask(edge: HTTPClient, question: str, **fields: Any) -> tuple[list[int], dict[str, Any]]:
    """The answer's tokens and its report."""
    body = {"prompt": f"<|user|>{question}<|assistant|>", "mode": "split", "temperature": 0, "max_tokens": LENGTH}
    answer: dict[str, Any] = await edge.post(
        "/v1/completions", body | {"collaboration": {"tokens": True}} | fields, dict
    )
    (choice,) = answer["choices"]
    assert answer["collaboration"]["degraded"] is None
    return [token["token_id"] for token in choice["collaboration"]["tokens"]], answer["collaboration"]


async def test_with_no_exit_taken_it_is_the_whole_models_answer(edge: HTTPClient) -> None:
    whole = WholeModel()
    for question in QUESTIONS:
        ids = whole.tokens(f"<|user|>{question}<|assistant|>")
        answer, report = await ask(edge, question, use_confidence_check=False)
        assert report["lossless"] and report["tokens"]["edge"] == 0
        for token in answer:
            likeliest, best = whole.likeliest(ids)
            assert token == likeliest or best - whole.logprob(ids, token) < NEAR, (question, token, likeliest)
            ids.append(token)


async def test_with_exits_the_cloud_computes_less_and_most_answers_stay(edge: HTTPClient) -> None:
    same, positions, all_positions = 0, 0, 0
    for question in QUESTIONS:
        right, without = await ask(edge, question, use_confidence_check=False)
        answer, report = await ask(edge, question, confidence_threshold=0.9)
        assert report["exits"]["2"] > 0
        same += answer == right
        positions += report["cloud_positions"]
        all_positions += without["cloud_positions"]
    assert same >= len(QUESTIONS) // 2
    assert positions < all_positions / 2


async def test_sixteen_at_once_are_answered_as_each_alone(edge: HTTPClient) -> None:
    asked = [
        (question, {"confidence_threshold": 0.97} | sampling)
        for question in QUESTIONS
        for sampling in ({}, {"temperature": 0.8, "top_k": 20, "seed": 5})
    ]
    alone = [(await ask(edge, question, **fields))[0] for question, fields in asked]
    together = await asyncio.gather(*(ask(edge, question, **fields) for question, fields in asked))
    assert [tokens for tokens, _ in together] == alone
    assert sum(report["tokens"]["cloud"] for _, report in together) > 0
