"""Both halves of a split model, real ones, over HTTP: together they answer as the whole, many at once as each alone."""

import asyncio
from collections import Counter
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


async def text_of(edge: HTTPClient, tokens: list[int]) -> str:
    return str((await edge.post("/detokenize", {"tokens": tokens}, dict))["prompt"])


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


async def test_penalties_and_biases_are_those_of_the_whole_model(edge: HTTPClient) -> None:
    """The cloud does not see the answer's tokens; it is told what the penalties make of their logits."""
    whole, changed = WholeModel(), 0
    fields = {"presence_penalty": 2.0, "frequency_penalty": 2.0, "logit_bias": {"300": 20.0}}
    for question in QUESTIONS[:4]:
        ids = whole.tokens(f"<|user|>{question}<|assistant|>")
        begin, plain = len(ids), (await ask(edge, question, use_confidence_check=False))[0]
        answer, _ = await ask(edge, question, use_confidence_check=False, **fields)
        for token in answer:
            logits = whole.logits(ids).copy()
            logits[300] += 20.0
            for earlier, count in Counter(ids[begin:]).items():
                logits[earlier] -= 2.0 + 2.0 * count
            assert logits.max() - logits[token] < NEAR, (question, token)
            ids.append(token)
        changed += 0 < answer.count(300) < len(answer) and answer != plain
    assert changed


async def test_a_second_turn_sends_only_what_is_new_and_answers_as_a_cold_one(edge: HTTPClient) -> None:
    """No exit is taken, fp16 states: the cloud's whole answer, of which the first turn's positions stay in both KVs."""
    for question, following in zip(QUESTIONS[:3], QUESTIONS[3:6], strict=True):
        first, _ = await ask(edge, question, use_confidence_check=False)
        turn = {
            "prompt": f"<|user|>{question}<|assistant|>"
            + await text_of(edge, first)
            + f"<|user|>{following}<|assistant|>"
        }
        warm, report = await ask(edge, following, use_confidence_check=False, **turn)
        cold, without = await ask(edge, following, use_confidence_check=False, use_kv_cache=False, **turn)
        assert warm == cold
        assert report["cached_tokens"] > len(first) and without["cached_tokens"] == 0
        assert report["cloud_positions"] == without["cloud_positions"] - report["cached_tokens"]
        assert report["bytes_up"] < without["bytes_up"]


async def test_another_ending_of_a_prompt_goes_back_in_both_kvs(edge: HTTPClient) -> None:
    shared = "You answer in few words. " * 6
    for ending in ("What is AI?", "Sort 31, 7, 64.", "What port does SSH use?"):
        prompt = {"prompt": f"<|user|>{shared}{ending}<|assistant|>", "max_tokens": 6}
        warm, report = await ask(edge, "", use_confidence_check=False, **prompt)
        cold, without = await ask(edge, "", use_confidence_check=False, use_kv_cache=False, **prompt)
        assert warm == cold
        if ending != "What is AI?":  # the first has little in common with what other tests have asked
            assert report["cached_tokens"] > 20
            assert report["cloud_positions"] == without["cloud_positions"] - report["cached_tokens"]


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
