"""Mode split with private words: the states that go up are those of the placeholders."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from common.http.client import HTTPClient
from tests.edge.privacy.test_wire import ANSWER, PATTERNS, QUESTION, REDACT, RESTORED, ids_of
from tests.support.split.fake_split_cloud import FakeSplitCloud
from tests.support.split.split_edge import split_edge


@pytest.fixture(scope="module")
def cloud() -> FakeSplitCloud:
    return FakeSplitCloud()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge(demo_split: Path, cloud: FakeSplitCloud) -> AsyncIterator[HTTPClient]:
    async with split_edge(cloud, demo_split, PATTERNS, REDACT) as made:
        yield made


async def ask(edge: HTTPClient, question: str, max_tokens: int) -> str:
    body = {"prompt": question, "mode": "split", "max_tokens": max_tokens, "temperature": 0}
    answer: dict[str, Any] = await edge.post("/v1/completions", body | {"use_confidence_check": False}, dict)
    return str(answer["choices"][0]["text"])


async def test_the_states_are_those_of_the_placeholders_and_the_answer_has_the_words(
    edge: HTTPClient, cloud: FakeSplitCloud
) -> None:
    hidden, script = "I am <EMAIL_1>, my number is <PRIVATE_1>.", await ids_of(edge, ANSWER)
    await ask(edge, hidden, 1)
    prompt = cloud.sessions[-1].positions
    cloud.model = lambda position: script[position - prompt]
    assert await ask(edge, QUESTION, len(script)) == RESTORED
    assert await ask(edge, hidden, len(script)) == ANSWER
    ours, by_hand = (session.states for session in cloud.sessions[-2:])
    assert np.array_equal(ours, by_hand)
    await ask(edge, QUESTION.replace("@", " at ").replace("-", " "), 1)
    other = cloud.sessions[-1].states
    assert len(other) != prompt or not np.array_equal(other, by_hand[:prompt]), "other words have other states"
