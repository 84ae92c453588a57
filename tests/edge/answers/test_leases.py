"""Which answers hold a sequence of the edge's engine: those that the edge computes, while it does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from benchmarks.fake_cloud import FakeCloud
from common.http.client import HTTPClient
from tests.edge.answers.test_context_limits import ASK
from tests.support.edge_in_process import edge_of

FOREVER = 3600.0
CLOUD_ONLY = ASK | {"mode": "cloud_only"}
PATIENCE = 20.0


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge(fake: FakeCloud) -> AsyncIterator[HTTPClient]:
    async with edge_of(fake.url, "edge.limits.max_queue=1") as made:
        yield made


@asynccontextmanager
async def waiting_for_the_cloud(edge: HTTPClient, fake: FakeCloud, answers: int, **fields: Any) -> AsyncIterator[None]:
    """So many answers of the cloud that do not end."""
    fake.pause, before = FOREVER, len(fake.starts)
    asked = CLOUD_ONLY | fields
    tasks = [asyncio.create_task(edge.post("/v1/completions", asked, dict)) for _ in range(answers)]
    try:
        async with asyncio.timeout(PATIENCE):
            while len(fake.starts) < before + answers:
                await asyncio.sleep(0.01)
        yield
        assert not any(task.done() for task in tasks)
    finally:
        fake.pause = 0.0
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("private", [{"mode": "edge_only"}, {"privacy": "edge_only"}])
async def test_answers_of_the_cloud_alone_delay_no_answer_of_the_edge(
    edge: HTTPClient, fake: FakeCloud, private: dict[str, Any]
) -> None:
    async with waiting_for_the_cloud(edge, fake, 4), asyncio.timeout(PATIENCE):
        assert (await edge.get("/stats", dict))["engine"]["sequences_lent"] == 0
        answer = await edge.post("/v1/completions", ASK | private, dict)
        assert answer["collaboration"]["mode"] == "edge_only"


async def test_an_answer_whose_cloud_is_lost_is_computed_with_a_sequence_of_its_own() -> None:
    async with edge_of("http://127.0.0.1:1") as alone:
        answer = await alone.post("/v1/completions", CLOUD_ONLY | {"prompt": "What is AI?"}, dict)
        assert answer["collaboration"]["tokens"]["edge"] > 0
        assert (await alone.get("/stats", dict))["engine"]["sequences_lent"] == 0
