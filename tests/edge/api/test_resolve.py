"""A request is resolved once: each privacy pattern is searched once in a prompt, and the first wrong field is named."""

import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from common.errors import FrameworkError
from common.http.client import HTTPClient
from tests.support.edge_in_process import edge_of
from tests.support.fake_split_cloud import NOWHERE

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
def searches(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each pattern was searched in each text."""
    counts, search = Counter[tuple[str, str]](), re.search

    def counted(pattern: Any, text: Any, *flags: Any) -> Any:
        if pattern in PATTERNS:
            counts[pattern, text] += 1
        return search(pattern, text, *flags)

    monkeypatch.setattr(re, "search", counted)
    return counts


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", MODES)
async def test_each_pattern_is_searched_once_in_each_prompt_however_many_answers_it_gets(
    edge: HTTPClient, searches: Counter[tuple[str, str]], mode: str, stream: bool
) -> None:
    body = {"prompt": PROMPTS, "n": 2, "max_tokens": 2, "mode": mode, "stream": stream}
    if stream:
        assert [event async for event in edge.events("/v1/completions", body)]
    else:
        answer: dict[str, Any] = await edge.post("/v1/completions", body, dict)
        assert len(answer["choices"]) == 6
    assert set(searches.values()) == {1}
    found = {(pattern, prompt) for pattern, text in searches for prompt in PROMPTS if prompt in text}
    # In the private prompt the search ends with the first pattern found.
    assert found == {(pattern, prompt) for pattern in PATTERNS for prompt in PROMPTS} - {(PATTERNS[1], PROMPTS[2])}


@pytest.mark.parametrize("mode", MODES)
async def test_each_pattern_is_searched_once_in_a_chat(
    edge: HTTPClient, searches: Counter[tuple[str, str]], mode: str
) -> None:
    messages = [{"role": "user", "content": PROMPTS[0]}, {"role": "assistant", "content": PROMPTS[1]}]
    await edge.post("/v1/chat/completions", {"messages": messages, "n": 2, "max_tokens": 2, "mode": mode}, dict)
    assert sorted(pattern for pattern, _ in searches.elements()) == sorted(PATTERNS)


WRONG: list[tuple[str, Any]] = [
    ("logit_bias", {"5": 1}),
    ("best_of", 3),
    ("prompt", ["fine", ""]),
    ("logprobs", 1),
    ("model", "another"),
    ("response_format", {"type": "json_schema"}),
    ("stop", ["x" * 1001]),
]
"""Fields of a completion request, wrong each by itself in collaborative mode, in the order in which they are named."""


async def test_of_several_wrong_fields_the_first_in_the_order_of_resolving_is_named(edge: HTTPClient) -> None:
    for first in range(len(WRONG)):
        body = {"prompt": "fine", "max_tokens": 2, "use_draft_verify": True} | dict(WRONG[first:])
        with pytest.raises(FrameworkError) as refusal:
            await edge.post("/v1/completions", body, dict)
        assert refusal.value.param == WRONG[first][0]


async def test_a_private_prompt_may_use_fields_that_only_the_edge_alone_supports(edge: HTTPClient) -> None:
    body = {"max_tokens": 2, "logprobs": 1}
    assert await edge.post("/v1/completions", body | {"prompt": PROMPTS[2]}, dict)
    with pytest.raises(FrameworkError) as refusal:
        await edge.post("/v1/completions", body | {"prompt": PROMPTS}, dict)
    assert refusal.value.param == "logprobs"
