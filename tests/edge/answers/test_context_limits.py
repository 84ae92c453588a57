"""A real edge beside a cloud without a model: where an answer ends when a context is full, and what it says then."""

import asyncio
from typing import Any

import pytest

from benchmarks.fake_cloud import FakeCloud, serving
from benchmarks.toy_model import CONTEXT, answer_of, cloud_model
from common.errors import ContextLengthError, EndpointError
from common.http.client import HTTPClient
from tests.support.edge_in_process import edge_of

PROMPT = next([p + 30, 2 * p + 30] for p in range(99) if len(answer_of(cloud_model, [p + 30, 2 * p + 30], 60)) > 40)
"""Token ids whose answer by the toy model is long."""
ASK: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 60, "temperature": 0, "confidence_threshold": 1.0}
LONG_PROMPT = next([p + 30] * 80 for p in range(99) if len(answer_of(cloud_model, [p + 30] * 80, 60)) > 40)
"""The same with a prompt of 80 tokens."""
SMALL = "edge.model.context_length=64"
MODES: dict[str, dict[str, Any]] = {
    "gated": {},
    "without F2": {"use_draft_verify": False},
    "lossless rounds": {"use_confidence_check": False, "way": "rounds"},
    "continuous": {"use_confidence_check": False, "way": "continuous"},
    "cloud only": {"mode": "cloud_only"},
}
with_the_cloud = pytest.mark.parametrize("fields", MODES.values(), ids=MODES)


@with_the_cloud
async def test_an_answer_that_fills_the_clouds_context_says_length(
    edge: HTTPClient, fake: FakeCloud, fields: dict[str, Any]
) -> None:
    for room in (1, 2, 19):
        fake.context = len(PROMPT) + room
        answer = await edge.post("/v1/completions", ASK | fields, dict)
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == room
        assert answer["collaboration"]["degraded"] is None
    fake.context = CONTEXT


@with_the_cloud
@pytest.mark.parametrize("threshold", [0.0, 1.0])
async def test_beside_a_cloud_with_a_shorter_context_answers_and_drafts_end_where_that_ends(
    fields: dict[str, Any], threshold: float
) -> None:
    async with serving() as short:
        short.context = len(PROMPT) + 21
        async with edge_of(short.url) as edge:
            body = ASK | {"confidence_threshold": threshold, "product_threshold": 0.0, "max_tokens": 500} | fields
            answer = await edge.post("/v1/completions", body, dict)
        assert answer["usage"]["completion_tokens"] <= 21
        assert (answer["choices"][0]["finish_reason"] == "length") == (answer["usage"]["completion_tokens"] == 21)
        assert answer["collaboration"]["degraded"] is None
        for asked in short.asked:
            assert asked.prefix_length + len(asked.new_token_ids) + len(asked.draft_token_ids) < short.context


async def test_a_prompt_that_is_too_long_for_the_cloud_is_answered_by_the_edge_or_refused() -> None:
    async with serving() as short:
        short.context = len(PROMPT)
        async with edge_of(short.url) as edge:
            answer = await edge.post("/v1/completions", ASK, dict)
            assert answer["collaboration"]["degraded"] and answer["collaboration"]["tokens"]["edge"] > 0
            with pytest.raises(ContextLengthError, match=f"a context of {len(PROMPT)}"):
                await edge.post("/v1/completions", ASK | {"mode": "cloud_only"}, dict)


@with_the_cloud
async def test_a_prompt_that_is_too_long_for_the_edge_is_answered_by_the_cloud(
    fake: FakeCloud, fields: dict[str, Any]
) -> None:
    async with edge_of(fake.url, SMALL) as edge:
        for prompt, max_tokens in ((LONG_PROMPT, 40), (PROMPT, 200)):
            body = ASK | fields | {"prompt": prompt, "max_tokens": max_tokens, "collaboration": {"tokens": True}}
            answer = await edge.post("/v1/completions", body, dict)
            tokens = [token["token_id"] for token in answer["choices"][0]["collaboration"]["tokens"]]
            assert tokens == answer_of(cloud_model, prompt, max_tokens)
            assert answer["collaboration"]["degraded"] is None


async def test_what_the_edge_must_answer_alone_has_the_limit_of_the_edge(fake: FakeCloud) -> None:
    async with edge_of(fake.url, SMALL) as edge:
        for alone in ({"mode": "edge_only"}, {"privacy": "edge_only"}):
            with pytest.raises(ContextLengthError, match="a context of 64"):
                await edge.post("/v1/completions", ASK | alone | {"prompt": LONG_PROMPT}, dict)


async def test_a_limit_of_tokens_a_request_holds_in_every_mode(fake: FakeCloud) -> None:
    async with edge_of(fake.url, "edge.limits.max_tokens_request=20") as edge:
        for fields in (*MODES.values(), {"mode": "edge_only"}):
            usage = (await edge.post("/v1/completions", ASK | fields, dict))["usage"]
            assert usage["total_tokens"] <= 20


async def test_a_lost_cloud_is_the_error_where_the_prompt_is_too_long_for_the_edge() -> None:
    async with serving() as lost, edge_of(lost.url, SMALL) as edge:
        assert await edge.post("/v1/completions", ASK | {"prompt": LONG_PROMPT}, dict)
        lost.full = True
        with pytest.raises(EndpointError, match="no room"):
            await edge.post("/v1/completions", ASK | {"prompt": LONG_PROMPT}, dict)


async def test_a_prompt_that_is_too_long_for_the_edge_waits_for_what_the_cloud_tells_of_its_context() -> None:
    async with serving() as starting:
        starting.tells.clear()
        async with edge_of(starting.url, SMALL) as edge:
            asking = asyncio.create_task(edge.post("/v1/completions", ASK | {"prompt": LONG_PROMPT}, dict))
            await asyncio.sleep(0.2)
            starting.tells.set()
            assert (await asking)["usage"]["completion_tokens"] > 0


async def test_without_a_cloud_that_tells_its_context_the_edges_is_the_limit_and_the_error_says_why() -> None:
    async with serving() as lost:
        lost.full = True
        async with edge_of(lost.url, SMALL) as edge:
            with pytest.raises(ContextLengthError, match=r"leave no room in a context of 64, and no cloud .* no room"):
                await edge.post("/v1/completions", ASK | {"prompt": LONG_PROMPT}, dict)
