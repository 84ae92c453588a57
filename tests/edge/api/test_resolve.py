"""A request is resolved once: privacy patterns are searched once in each prompt, and the first wrong field is named."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from common.cloud_client.privacy import PrivatePatterns
from common.errors import FrameworkError
from common.http.client import HTTPClient
from tests.support.edge_in_process import edge_of
from tests.support.split.fake_split_cloud import NOWHERE

PATTERNS = "first-pattern", "second-pattern"
PROMPTS = ["What is AI?", "How does ML work?", "my first-pattern"]
MODES = "edge_only", "collaborative", "cloud_only", "split"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge(demo_split: Path) -> AsyncIterator[HTTPClient]:
    async with edge_of(
        NOWHERE, f"inference.private_patterns={list(PATTERNS)}", f"edge.split.manifest={demo_split}"
    ) as client:
        yield client


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each text was searched."""
    counts, match = Counter[str](), PrivatePatterns.match

    async def counted(patterns: PrivatePatterns, text: str) -> bool:
        counts[text] += 1
        return await match(patterns, text)

    monkeypatch.setattr(PrivatePatterns, "match", counted)
    return counts


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", MODES)
async def test_each_prompt_is_searched_once_however_many_answers_it_gets(
    edge: HTTPClient, searches: Counter[str], mode: str, stream: bool
) -> None:
    body = {"prompt": PROMPTS, "n": 2, "max_tokens": 2, "mode": mode, "stream": stream}
    if stream:
        assert [event async for event in edge.events("/v1/completions", body)]
    else:
        answer: dict[str, Any] = await edge.post("/v1/completions", body, dict)
        assert len(answer["choices"]) == 6
    assert sorted(searches.values()) == [1] * len(PROMPTS)
    assert {prompt for text in searches for prompt in PROMPTS if prompt in text} == set(PROMPTS)


@pytest.mark.parametrize("mode", MODES)
async def test_a_chat_is_searched_once(edge: HTTPClient, searches: Counter[str], mode: str) -> None:
    messages = [{"role": "user", "content": PROMPTS[0]}, {"role": "assistant", "content": PROMPTS[1]}]
    await edge.post("/v1/chat/completions", {"messages": messages, "n": 2, "max_tokens": 2, "mode": mode}, dict)
    assert list(searches.values()) == [1]


WRONG: list[tuple[str, Any]] = [
    ("model", "another"),
    ("best_of", 3),
    ("prompt", ["fine", ""]),
    ("min_p", 0.5),
    ("logit_bias", {"5": 1}),
    ("response_format", {"type": "json_schema"}),
    ("stop", ["x" * 1001]),
]
"""Fields of a completion request, wrong each by itself in collaborative mode, in the order in which they are named."""


async def test_of_several_wrong_fields_the_first_in_the_order_of_resolving_is_named(edge: HTTPClient) -> None:
    for first in range(len(WRONG)):
        body = {"prompt": "fine", "max_tokens": 2, "mode": "cloud_only"} | dict(WRONG[first:])
        with pytest.raises(FrameworkError) as refusal:
            await edge.post("/v1/completions", body, dict)
        assert refusal.value.param == WRONG[first][0]


async def test_a_private_prompt_may_use_fields_that_only_the_edge_alone_supports(edge: HTTPClient) -> None:
    body = {"max_tokens": 2, "min_p": 0.1, "mode": "collaborative"}
    assert await edge.post("/v1/completions", body | {"prompt": PROMPTS[2]}, dict)
    with pytest.raises(FrameworkError) as refusal:
        await edge.post("/v1/completions", body | {"prompt": PROMPTS}, dict)
    assert refusal.value.param == "min_p"
