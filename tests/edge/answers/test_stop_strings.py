"""A stop string inside a chunk of tokens: usage, report, sources and metrics count the tokens up to it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from benchmarks.fake_cloud import serving
from common.http.client import HTTPClient
from tests.edge.answers.test_context_limits import ASK, MODES
from tests.edge.api.test_lost_clouds import metrics
from tests.support.edge_in_process import edge_of

EVERYWHERE = {
    **MODES,
    "edge only": {"mode": "edge_only"},
    "confident": {"confidence_threshold": 0.0, "product_threshold": 0.0},
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge() -> AsyncIterator[HTTPClient]:
    async with serving() as fake, edge_of(fake.url) as made:
        yield made


@pytest.mark.parametrize("fields", EVERYWHERE.values(), ids=EVERYWHERE)
async def test_a_stop_string_inside_a_chunk_gives_the_same_counts_everywhere(
    edge: HTTPClient, fields: dict[str, Any]
) -> None:
    whole = await completion(edge, **fields)
    assert whole["usage"]["completion_tokens"] > 8
    for stopped in range(1, 8):
        texts = [token["text"] for token in sources(whole)]
        stop, before = "".join(texts[:stopped])[-6:], await metrics(edge)
        answer, after = await completion(edge, stop=stop, **fields), await metrics(edge)
        report, used = answer["collaboration"], answer["usage"]["completion_tokens"]
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert 1 <= used <= stopped
        assert len(sources(answer)) == sum(report["tokens"].values()) == used
        assert all((token["round"] is None) == (token["source"] == "edge") for token in sources(answer))
        counted = sum(value - before[name] for name, value in after.items() if "answer_tokens_total" in name)
        assert counted == used


async def completion(edge: HTTPClient, **fields: Any) -> dict[str, Any]:
    asked = ASK | {"collaboration": {"tokens": True}, "max_tokens": 24}
    answer: dict[str, Any] = await edge.post("/v1/completions", asked | fields, dict)
    return answer


def sources(answer: dict[str, Any]) -> list[dict[str, Any]]:
    tokens: list[dict[str, Any]] = answer["choices"][0]["collaboration"]["tokens"]
    return tokens
