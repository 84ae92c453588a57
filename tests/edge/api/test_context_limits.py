"""A real edge beside a cloud without a model: where an answer ends when a context is full, and what it says then."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from benchmarks.fake_cloud import FakeCloud, serving
from benchmarks.toy_model import CONTEXT, answer_of, cloud_model
from common.http.client import HTTPClient
from tests.support.edge_in_process import edge_of

PROMPT = next([p + 30, 2 * p + 30] for p in range(99) if len(answer_of(cloud_model, [p + 30, 2 * p + 30], 60)) > 40)
"""Token ids whose answer by the toy model is long."""
ASK: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 60, "temperature": 0, "confidence_threshold": 1.0}
MODES: dict[str, dict[str, Any]] = {
    "gated": {},
    "without F2": {"use_draft_verify": False},
    "lossless rounds": {"use_confidence_check": False, "way": "rounds"},
    "continuous": {"use_confidence_check": False, "way": "continuous"},
    "cloud only": {"mode": "cloud_only"},
}
with_the_cloud = pytest.mark.parametrize("fields", MODES.values(), ids=MODES)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fake() -> AsyncIterator[FakeCloud]:
    async with serving() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge(fake: FakeCloud) -> AsyncIterator[HTTPClient]:
    async with edge_of(fake.url) as made:
        yield made


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
