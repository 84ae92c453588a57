"""OpenAI's client, unmodified, against the edge of a pair; other projects' clients are in tests/clients."""

from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.conftest import Servers

MODEL = "demo-edge"
QUESTION: Any = [{"role": "user", "content": "What is machine learning?"}]
ANSWER = "Machine learning is"


@pytest.fixture
def client(servers: Servers) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=servers.edge_url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def test_openai_lists_and_finds_the_model(client: openai.OpenAI) -> None:
    assert {MODEL, "demo-cloud", "lossless"} < {model.id for model in client.models.list()}
    assert client.models.retrieve(MODEL).owned_by == "edge"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_openai_chats_and_streams_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert (whole.choices[0].message.content or "").startswith(ANSWER)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_openai_completes_with_echo_and_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["The capital", "A"], max_tokens=5, temperature=0, echo=True, logprobs=2, n=2, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text.startswith("The capital")
    scores = answer.choices[0].logprobs
    assert scores is not None and scores.token_logprobs is not None and scores.tokens is not None
    assert len(scores.tokens) == len(scores.token_logprobs) > 5


def test_openai_reads_a_chats_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, logprobs=True, top_logprobs=4, max_completion_tokens=6
    )
    scores = answer.choices[0].logprobs
    assert scores is not None and scores.content is not None
    assert [len(token.top_logprobs) for token in scores.content] == [4] * 6
    assert all(token.logprob <= 0 for token in scores.content)


class Place(pydantic.BaseModel):
    kind: Literal["city", "country"]
    north: bool


def test_openai_parses_structured_output(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Place, seed=1)
    assert isinstance(answer.choices[0].message.parsed, Place)


def test_openai_raises_its_own_errors(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="another"):
        create(model="another", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="context") as refusal:
        create(model=MODEL, messages=[{"role": "user", "content": "word " * 3000}])
    assert refusal.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as refusal:
        create(model=MODEL, messages=QUESTION, temperature=9, stream=True)
    assert refusal.value.param == "temperature"


async def test_openai_works_asynchronously_too(servers: Servers) -> None:
    async with openai.AsyncOpenAI(base_url=servers.edge_url + "/v1", api_key="none") as client:
        stream = await client.completions.create(model=MODEL, prompt="1 1", max_tokens=5, stream=True, logprobs=1)
        assert "".join([chunk.choices[0].text async for chunk in stream])
