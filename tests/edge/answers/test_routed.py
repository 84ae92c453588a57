"""Mode route on a real edge with the demo's router: whole answers of one side, private ones, limits, lost clouds."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from benchmarks.fake_cloud import FakeCloud, serving
from common.errors import ConfigError, RequestError
from common.http.client import HTTPClient
from common.protocol.vocabulary import VocabularyInfo
from tests.support.edge_in_process import edge_of
from tests.support.fake_openai import KEY
from tests.support.fake_openai import serving as serving_openai
from tests.support.routing.routers import blind, doubtful

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "What is AI?"}], "max_tokens": 24, "temperature": 0}
TO_CLOUD, TO_EDGE = {"mode": "route", "route_threshold": 0.0}, {"mode": "route", "route_threshold": 1.0}
PATTERN = r"inference.private_patterns=['\b\d{3}-\d{2}-\d{4}\b']"
SECRET = [{"role": "user", "content": "My number is 123-45-6789, is it safe?"}]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge(fake: FakeCloud) -> AsyncIterator[HTTPClient]:
    async with edge_of(fake.url, PATTERN, "edge.model.context_length=256") as made:
        yield made


async def ask(edge: HTTPClient, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await edge.post("/v1/chat/completions", ASK | fields, dict)
    return answer


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1.0, "seed": 7}, {"presence_penalty": 1.0}, {"stop": "is"}], ids=str
)
@pytest.mark.parametrize(("route", "side"), [(TO_EDGE, "edge_only"), (TO_CLOUD, "cloud_only")])
async def test_a_routed_answer_is_that_of_its_side_alone(
    edge: HTTPClient, route: dict[str, Any], side: str, sampling: dict[str, Any]
) -> None:
    routed, alone = await ask(edge, **route, **sampling), await ask(edge, mode=side, **sampling)
    assert text_of(routed) == text_of(alone)
    assert routed["choices"][0]["finish_reason"] == alone["choices"][0]["finish_reason"]
    assert routed["usage"]["completion_tokens"] == alone["usage"]["completion_tokens"]
    report = routed["collaboration"]
    assert (report["mode"], report["routed_to"]) == ("route", side.removesuffix("_only"))
    assert report["tokens"] == alone["collaboration"]["tokens"]
    assert report["lossless"] is (side == "cloud_only")
    assert 0 < report["route_score"] < 1


async def test_an_answer_that_the_edge_keeps_is_drawn_once_and_one_of_the_clouds_shows_nothing_of_the_edge(
    edge: HTTPClient,
) -> None:
    tokens = (await edge.get("/stats", dict))["router"]["tokens"]
    kept, given = await ask(edge, **TO_EDGE), await ask(edge, **TO_CLOUD)
    assert kept["collaboration"]["edge_drawn"] == kept["usage"]["completion_tokens"] > tokens
    assert (kept["collaboration"]["edge_wasted"], kept["collaboration"]["cloud_calls"]) == (0, 0)
    assert given["collaboration"]["edge_drawn"] == given["collaboration"]["edge_wasted"] == tokens
    assert given["collaboration"]["tokens"]["cloud"] == given["usage"]["completion_tokens"]


async def test_the_model_route_streams_and_reports_like_the_mode(edge: HTTPClient) -> None:
    whole = await ask(edge, model="route")
    events = [
        msgspec.json.decode(event)
        async for event in edge.events("/v1/chat/completions", ASK | {"model": "route", "stream": True})
    ]
    streamed = "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])
    assert streamed == text_of(whole)
    assert events[-1]["collaboration"]["route_score"] == whole["collaboration"]["route_score"]


async def test_a_private_request_stays_at_the_edge_whatever_the_router_would_say(
    edge: HTTPClient, fake: FakeCloud
) -> None:
    before = len(fake.starts)
    for private in ({"private": True}, {"messages": SECRET}, {"privacy": "edge_only"}):
        report = (await ask(edge, **TO_CLOUD, **private))["collaboration"]
        assert (report["mode"], report["routed_to"], report["cloud_calls"]) == ("edge_only", None, 0)
    assert len(fake.starts) == before
    assert (await ask(edge, **TO_CLOUD))["collaboration"]["cloud_calls"] == 1


async def test_a_prompt_that_does_not_fit_the_edge_goes_to_the_cloud(edge: HTTPClient) -> None:
    long = [{"role": "user", "content": "What is AI? " * 60}]
    report = (await ask(edge, **TO_EDGE, messages=long))["collaboration"]
    assert (report["mode"], report["mode_because"]) == ("cloud_only", "the prompt does not fit the edge's context")


async def test_a_prompt_that_does_not_fit_the_cloud_stays_at_the_edge_which_says_why() -> None:
    async with serving() as small:
        small.context = 32
        async with edge_of(small.url) as edge:
            long = [{"role": "user", "content": "What is AI? " * 20}]
            report = (await ask(edge, **TO_CLOUD, messages=long))["collaboration"]
            assert report["mode"] == "edge_only"
            assert report["mode_because"] == "the prompt does not fit the cloud's context"
            assert (report["degraded"], report["routed_to"], len(small.starts)) == (None, None, 0)
            assert (await ask(edge, **TO_CLOUD))["collaboration"]["routed_to"] == "cloud"


async def test_what_only_the_edge_supports_it_answers(edge: HTTPClient) -> None:
    report = (await ask(edge, **TO_CLOUD, min_p=0.1))["collaboration"]
    assert (report["mode"], report["cloud_calls"]) == ("edge_only", 0)


async def test_a_lost_cloud_means_the_edge_answers_and_says_so(edge: HTTPClient) -> None:
    alone = text_of(await ask(edge, mode="edge_only"))
    async with edge_of("http://127.0.0.1:1") as lonely:
        answer = await ask(lonely, **TO_CLOUD)
    assert text_of(answer) == alone
    assert answer["collaboration"]["degraded"]
    assert not answer["collaboration"]["lossless"]


async def test_every_choice_is_routed_by_its_own_first_tokens(edge: HTTPClient) -> None:
    answer = await ask(edge, **TO_EDGE, n=3, temperature=1.5, seed=3)
    alone = await ask(edge, mode="edge_only", n=3, temperature=1.5, seed=3)
    assert [choice["message"] for choice in answer["choices"]] == [choice["message"] for choice in alone["choices"]]


async def test_a_server_with_openais_api_gets_whole_requests(edge: HTTPClient) -> None:
    async with serving_openai() as cloud:
        clouds = msgspec.json.encode([{"url": cloud.url, "kind": "openai", "api_key": KEY}]).decode()
        async with edge_of("http://localhost:8081", f"communication.clouds={clouds}") as other:
            alone = await ask(other, mode="cloud_only")
            asked = len(cloud.asked)
            given, kept = await ask(other, **TO_CLOUD), await ask(other, **TO_EDGE)
    assert text_of(given) == text_of(alone)
    assert cloud.asked[asked:] == cloud.asked[:asked], "it is asked the same, once"
    assert (given["collaboration"]["routed_to"], kept["collaboration"]["routed_to"]) == ("cloud", "edge")
    assert text_of(kept) == text_of(await ask(edge, mode="edge_only"))


async def test_a_prompt_is_not_scored_before_it_is_known_who_answers(edge: HTTPClient) -> None:
    body = {"prompt": "What is AI?", "echo": True, "logprobs": 1, "max_tokens": 3, "mode": "route"}
    with pytest.raises(RequestError, match="scored"):
        await edge.post("/v1/completions", body, dict)
    assert await edge.post("/v1/completions", body | {"logprobs": None}, dict)


async def test_the_threshold_is_the_requests_the_configs_or_the_files(fake: FakeCloud, tmp_path: Path) -> None:
    file = tmp_path / "router.json"
    file.write_bytes(msgspec.json.encode(blind(score_is_high=True)))
    settings = [f"edge.router.path={file}", "inference.mode=route"]
    async with edge_of(fake.url, *settings) as edge:
        assert (await ask(edge))["collaboration"]["routed_to"] == "cloud"
        assert (await ask(edge, route_threshold=0.99))["collaboration"]["routed_to"] == "edge"
    async with edge_of(fake.url, *settings, "edge.router.threshold=0.99") as edge:
        assert (await ask(edge))["collaboration"]["routed_to"] == "edge"
        assert (await edge.get("/stats", dict))["router"]["threshold"] == 0.99


@pytest.mark.parametrize("setting", ["edge.router.path=''", "edge.model.path=models/demo-edge-other.gguf"])
async def test_without_a_router_for_its_model_an_edge_has_no_such_mode(fake: FakeCloud, setting: str) -> None:
    async with edge_of(fake.url, setting) as edge:
        assert "route" not in [card["id"] for card in (await edge.get("/v1/models", dict))["data"]]
        with pytest.raises(RequestError, match="needs a router"):
            await ask(edge, mode="route")


async def test_a_configured_router_that_is_missing_stops_the_start(fake: FakeCloud, tmp_path: Path) -> None:
    for settings in (["edge.router.path=''"], [f"edge.router.path={tmp_path / 'none.json'}"]):
        with pytest.raises(ConfigError):
            async with edge_of(fake.url, "inference.mode=route", *settings):
                pass


async def test_a_router_that_was_trained_on_something_else_is_named_in_the_log(
    fake: FakeCloud, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cloud's model is known with the first answers, and named once."""
    file = tmp_path / "router.json"
    file.write_bytes(msgspec.json.encode(doubtful()))
    async with HTTPClient(fake.url) as client:
        told = await client.get("/tokenizer", VocabularyInfo)
    monkeypatch.setattr(fake, "vocabulary", msgspec.structs.replace(told, model="larger"))
    async with edge_of(fake.url, f"edge.router.path={file}", "edge.confidence.strategy=entropy") as edge:
        for _ in range(3):
            await ask(edge, mode="route")
    said = [record.getMessage() for record in caplog.records if str(file) in record.getMessage()]
    assert said == [
        f"{file} was trained on edge, not on demo-edge: calibrate a router",
        f"{file} was trained with confidences of strategy max_prob, not entropy",
        f"{file} was trained on the cloud's cloud, not on larger",
    ]


async def test_while_the_cloud_answers_the_edges_sequence_is_free_for_others(fake: FakeCloud) -> None:
    """With one sequence and no queue, a second answer is only taken if the first has given its own back."""
    async with edge_of(fake.url, "edge.model.sequences=1") as edge:
        fake.pause = 0.2
        try:
            long = asyncio.create_task(ask(edge, **TO_CLOUD, max_tokens=60))
            while not (await edge.get("/stats", dict))["clouds"]["endpoints"][fake.url]["in_flight"]:
                await asyncio.sleep(0.01)
            assert (await edge.get("/stats", dict))["engine"]["sequences_lent"] == 0
            assert (await ask(edge, mode="edge_only"))["usage"]["completion_tokens"]
            assert not long.done()
        finally:
            fake.pause = 0.0
        assert (await long)["collaboration"]["routed_to"] == "cloud"
