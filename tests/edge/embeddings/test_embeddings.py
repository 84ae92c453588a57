"""POST /v1/embeddings at an edge with a model for them: vectors that depend on nothing else, and clear refusals."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import openai
import pytest
import pytest_asyncio

from common.config_edge import EmbeddingsConfig
from common.errors import FrameworkError, RequestError
from common.http.client import HTTPClient
from edge.engine.embedding_engine import EmbeddingEngine, share_out
from tests.conftest import Edge
from tests.support.edge_in_process import edge_of
from tests.support.gguf_copies import DEMO, copy

TEXTS = ["What is AI?", "The capital of France is Paris.", "x = 1\n" * 40]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def embeds() -> AsyncIterator[HTTPClient]:
    async with edge_of("http://127.0.0.1:1", f"edge.embeddings.path={DEMO}") as made:
        yield made


async def vectors(client: HTTPClient, given: Any, **fields: Any) -> Any:
    reply = await client.post("/v1/embeddings", {"input": given, **fields}, dict)
    assert [one["index"] for one in reply["data"]] == list(range(len(reply["data"])))
    return np.array([one["embedding"] for one in reply["data"]])


async def test_a_vector_has_length_one_and_depends_on_its_text_alone(embeds: HTTPClient) -> None:
    together = await vectors(embeds, TEXTS * 20)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    alone = np.concatenate([await vectors(embeds, text) for text in TEXTS])
    np.testing.assert_allclose(together, np.tile(alone, (20, 1)), atol=2e-3)
    similar = alone @ alone.T
    assert similar[~np.eye(3, dtype=bool)].max() < 0.999


async def test_requests_at_once_get_their_own(embeds: HTTPClient) -> None:
    alone = [await vectors(embeds, text) for text in TEXTS]
    at_once = await asyncio.gather(*(vectors(embeds, text) for text in TEXTS * 5))
    for got, wanted in zip(at_once, alone * 5, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-3)


async def test_the_forms_of_input_and_output_agree(embeds: HTTPClient) -> None:
    plain = await embeds.post("/v1/embeddings", {"input": TEXTS[0]}, dict)
    ids = (await embeds.post("/tokenize", {"prompt": TEXTS[0]}, dict))["tokens"]
    assert plain["usage"] == {"prompt_tokens": len(ids), "total_tokens": len(ids)}
    np.testing.assert_allclose(await vectors(embeds, ids), await vectors(embeds, TEXTS[0]), atol=1e-6)
    np.testing.assert_allclose(await vectors(embeds, [ids]), await vectors(embeds, TEXTS[0]), atol=1e-6)
    text = await embeds.post("/v1/embeddings", {"input": TEXTS[0], "encoding_format": "base64"}, dict)
    decoded = np.frombuffer(base64.b64decode(text["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(decoded, plain["data"][0]["embedding"], atol=1e-6)


async def test_fewer_dimensions_are_the_first_ones(embeds: HTTPClient) -> None:
    (whole,), (cut,) = await vectors(embeds, TEXTS[0]), await vectors(embeds, TEXTS[0], dimensions=8)
    np.testing.assert_allclose(cut, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-5)


async def test_openais_client_reads_them(embeds: HTTPClient) -> None:
    async with openai.AsyncOpenAI(base_url=embeds.base_url + "/v1", api_key="none", max_retries=0) as client:
        name = (await client.models.list()).data[-1].id
        reply = await client.embeddings.create(model=name, input=TEXTS)  # it asks for base64
        np.testing.assert_allclose([one.embedding for one in reply.data], await vectors(embeds, TEXTS), atol=2e-3)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [10**6]}, "input"),
        ({"input": ["x "] * 3000}, "input"),
        ({"input": ["a", "x " * 3000]}, "input[1]"),
        ({"input": "x", "dimensions": 10**6}, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "x", "unheard": 1}, "unheard"),
    ],
)
async def test_what_cannot_be_had_is_named(embeds: HTTPClient, body: dict[str, Any], name: str) -> None:
    with pytest.raises(RequestError) as refusal:
        await embeds.post("/v1/embeddings", body, dict)
    assert refusal.value.status == 400 and name in (refusal.value.param or refusal.value.message)
    assert (await vectors(embeds, "x")).shape[0] == 1


async def test_another_models_vectors_are_not_given_under_its_name(embeds: HTTPClient) -> None:
    with pytest.raises(RequestError, match="demo-edge"):
        await vectors(embeds, "x", model="text-embedding-3-small")


async def test_an_edge_without_such_a_model_asks_the_cloud(edge: Edge) -> None:
    with pytest.raises(FrameworkError, match=r"cannot reach|no cloud"):
        await vectors(edge.http, "x")
    with pytest.raises(RequestError, match="privacy"):
        await vectors(edge.http, "x", privacy="edge_only")


async def test_private_texts_stay_at_the_edge() -> None:
    async with edge_of("http://127.0.0.1:1", 'inference.private_patterns=["secret", "123"]') as private:
        bodies: list[tuple[str, dict[str, Any]]] = [
            ("/v1/embeddings", {"input": ["a", "my secret"]}),
            ("/v1/embeddings", {"input": [5, 6]}),
            ("/v1/embeddings", {"input": [[5, 6], [7]]}),
            ("/v1/embeddings", {"input": "x", "metadata": {"n": 123}}),
            ("/v1/rerank", {"query": "secret"}),
        ]
        for path, body in bodies:
            with pytest.raises(RequestError, match="private"):
                await private.post(path, body, dict)
        with pytest.raises(FrameworkError, match=r"cannot reach|no cloud"):
            await private.post("/v1/embeddings", {"input": "x", "dimensions": 123}, dict)


async def test_the_edges_own_name_and_mode_keep_texts_at_the_edge() -> None:
    for setting, name in (("inference.aliases={mine: edge}", "mine"), ("inference.mode=edge_only", "auto")):
        async with edge_of("http://127.0.0.1:1", setting) as alone:
            for path in ("/v1/embeddings", "/v1/score"):
                with pytest.raises(RequestError, match="no cloud may be asked") as refusal:
                    await alone.post(path, {"input": "x", "model": name}, dict)
                assert refusal.value.param == "model"


async def test_a_file_says_how_its_vectors_are_pooled(tmp_path: Any) -> None:
    async def vector(path: Any) -> Any:
        async with EmbeddingEngine(EmbeddingsConfig(path=str(path))) as engine:
            return (await engine.embed([[5, 6, 7, 8]]))[0]

    mean, last = await vector(DEMO), await vector(copy(tmp_path / "last.gguf", **{"llama.pooling_type": 3}))
    assert np.abs(mean - last).max() > 1e-3


async def test_a_client_that_leaves_ends_the_work_for_it() -> None:
    async with EmbeddingEngine(EmbeddingsConfig(path=str(DEMO))) as engine:
        long = asyncio.create_task(engine.embed([[5] * 500] * 2000))
        await asyncio.sleep(0.05)
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
        assert len(await engine.embed([[5, 6]])) == 1
        assert engine._thread.scheduler is not None and engine._thread.scheduler._active == []


def test_a_step_takes_texts_of_all_requests_in_turn() -> None:
    assert share_out([[[0] * 100] * 50, [[0] * 10]], 512) == [5, 1]
    assert share_out([[[0] * 500], [[0] * 500]], 512) == [1, 0]
    assert sum(share_out([[[0]] * 1000], 512)) == 32
