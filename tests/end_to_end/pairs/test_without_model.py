"""An edge without a model of its own, on a real cloud: it only looks drafts up, and refuses what needs a model."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from common.errors import EndpointError, RequestError
from common.http.client import HTTPClient
from tests.conftest import Servers
from tests.end_to_end.test_lookup import predicted, text_of
from tests.support.edge_in_process import edge_of

QUESTION = [{"role": "user", "content": "Explain quantum computing"}]
ASK: dict[str, Any] = {"messages": QUESTION, "temperature": 0, "max_tokens": 64}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bare(servers: Servers) -> AsyncIterator[HTTPClient]:
    async with edge_of(servers.cloud_url, "edge.model.path=''") as client:
        yield client


async def ask(edge: HTTPClient, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await edge.post("/v1/chat/completions", ASK | fields, dict)
    return answer


@pytest.mark.parametrize("way", ["auto", "rounds", "continuous"])
async def test_its_answers_are_the_clouds_own_and_a_prediction_saves_steps(
    servers: Servers, bare: HTTPClient, way: str
) -> None:
    alone = await ask(servers.edge, mode="cloud_only")
    plain, answer = await ask(bare, way=way), await ask(bare, way=way, **predicted(text_of(alone)))
    assert text_of(plain) == text_of(answer) == text_of(alone)
    assert plain["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"], "the cloud's chat template"
    report = answer["collaboration"]
    assert report["lossless"]
    assert report["cloud_steps"] < alone["collaboration"]["cloud_steps"] / 4
    assert report["edge_drawn"] == report["drafters"]["model"] == 0


async def test_the_clouds_own_tokens_and_text_are_the_edges(servers: Servers, bare: HTTPClient) -> None:
    for path, body in {
        "/tokenize": {"messages": QUESTION},
        "/detokenize": {"tokens": [300, 500, 700]},
    }.items():
        ours, theirs = await bare.post(path, body, dict), await servers.cloud.post(path, body, dict)
        assert {key: ours[key] for key in ours.keys() & theirs.keys()} == {
            key: theirs[key] for key in ours.keys() & theirs.keys()
        }
    assert (await bare.get("/ready", dict))["status"] == "ready"
    model = (await bare.get("/v1/models", dict))["data"][0]
    assert model["max_model_len"] == 1024


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": "edge_only"},
        {"use_confidence_check": True},
        {"use_draft_verify": False},
        {"privacy": "edge_only"},
    ],
)
async def test_what_needs_a_model_is_refused_in_one_line(bare: HTTPClient, fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"this edge has no model of its own \(edge.model.path is empty\): ask"):
        await ask(bare, **fields)


async def test_drafts_are_refused(bare: HTTPClient) -> None:
    with pytest.raises(RequestError, match="this edge has no model"):
        await bare.post("/draft", {"prompt": "What"}, dict)


async def test_a_lost_cloud_is_an_error(servers: Servers, bare: HTTPClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from common.cloud_client.verifier import CloudVerifier

    def lost(*args: object, **kwargs: object) -> None:
        raise EndpointError("the cloud is lost")

    monkeypatch.setattr(CloudVerifier, "stream", lost)
    with pytest.raises(EndpointError, match="the cloud is lost"):
        await ask(bare)
