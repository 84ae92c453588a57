"""Chats with images and audio go to the cloud alone, whoever asks and however; what is none is refused by its place."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from benchmarks.fake_cloud import FakeCloud
from common.errors import FrameworkError, RequestError
from common.http.client import HTTPClient
from common.http.error_replies import Busy
from common.http.messages import read
from common.http_server import HTTPServer
from tests.support.edge_in_process import edge_of

PNG = base64.b64encode(bytes.fromhex("89504e470d0a1a0a") + bytes(40)).decode()
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": PNG, "format": "wav"}}
SAID = "Paris is the capital of France."


def asked(*parts: dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "text", "text": "What is this?"}, *parts]
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 30}


class SeeingCloud(FakeCloud):
    """Answers chats as vLLM streams them, the same to all."""

    def __init__(self) -> None:
        super().__init__()
        self.chats: list[dict[str, Any]] = []
        self.script: list[int] = []
        self.refusal = ""

    def app(self) -> web.Application:
        app = super().app()
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await read(request, dict[str, Any])
        self.chats.append(body)
        if self.refusal:
            raise RequestError(self.refusal, param="messages")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for at, token in enumerate(self.script):
            scores = {"content": [{"token": f"token_id:{token}", "logprob": -0.5, "top_logprobs": []}]}
            last = "stop" if at == len(self.script) - 1 else None
            choice = {"index": 0, "token_ids": [token], "finish_reason": last, "logprobs": scores}
            usage = {"prompt_tokens": 777, "completion_tokens": at + 1, "total_tokens": 778 + at}
            chunk = {"choices": [choice if body.get("logprobs") else choice | {"logprobs": None}], "usage": usage}
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def seeing() -> AsyncIterator[SeeingCloud]:
    cloud = SeeingCloud()
    server = HTTPServer(cloud.app(), "127.0.0.1", 0, drain_seconds=0)
    await server.start()
    cloud.url = f"http://127.0.0.1:{server.port}"
    try:
        yield cloud
    finally:
        await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge_with(seeing: SeeingCloud) -> AsyncIterator[HTTPClient]:
    async with edge_of(seeing.url, 'inference.private_patterns=["secret"]') as made:
        ids = await made.post("/tokenize", {"prompt": SAID, "add_special_tokens": False}, dict)
        seeing.script = [*ids["tokens"], 0]
        yield made


@pytest.mark.parametrize("part", [IMAGE, AUDIO, {"type": "image_url", "image_url": "https://example.com/a.png"}])
async def test_the_cloud_alone_answers_and_the_report_says_why(
    edge_with: HTTPClient, seeing: SeeingCloud, part: dict[str, Any]
) -> None:
    answer = await edge_with.post("/v1/chat/completions", asked(part), dict)
    report = answer["collaboration"]
    assert answer["choices"][0]["message"]["content"] == SAID
    assert (report["mode"], report["lossless"], report["tokens"]["cloud"]) == ("cloud_only", True, len(seeing.script))
    assert part["type"] in report["mode_because"] and report["bytes_up"] > 0
    assert answer["usage"]["prompt_tokens"] == 777
    sent = seeing.chats[-1]
    assert part in sent["messages"][0]["content"] and sent["max_completion_tokens"] == 30
    named = await edge_with.post("/v1/chat/completions", asked(part) | {"mode": "cloud_only"}, dict)
    assert named["collaboration"]["mode_because"] is None


async def test_streams_choices_stops_and_logprobs_are_as_of_any_answer(
    edge_with: HTTPClient, seeing: SeeingCloud
) -> None:
    body = asked(IMAGE) | {"logprobs": True, "n": 2, "stop": [" of"]}
    answer = await edge_with.post("/v1/chat/completions", body, dict)
    for choice in answer["choices"]:
        assert choice["message"]["content"] == "Paris is the capital"
        entries = choice["logprobs"]["content"]
        assert "".join(one["token"] for one in entries) == "Paris is the capital"
        assert {one["logprob"] for one in entries} == {-0.5}
    events = [json.loads(event) async for event in edge_with.events("/v1/chat/completions", body | {"stream": True})]
    for choice in (0, 1):
        deltas = [one["delta"] for event in events for one in event["choices"] if one["index"] == choice]
        assert "".join(one.get("content", "") for one in deltas) == "Paris is the capital"


async def test_both_dialects_take_images(edge_with: HTTPClient, seeing: SeeingCloud) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PNG}
    turn = {"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "What?"}]}
    answer = await edge_with.post("/v1/messages", {"messages": [turn], "max_tokens": 30}, dict)
    assert answer["content"] == [{"type": "text", "text": SAID}]
    assert seeing.chats[-1]["messages"][0]["content"][0] == IMAGE
    counted = await edge_with.post("/v1/messages/count_tokens", {"messages": [turn]}, dict)
    only_text = {"role": "user", "content": "What?"}
    without = await edge_with.post("/v1/messages/count_tokens", {"messages": [only_text]}, dict)
    assert counted["input_tokens"] > without["input_tokens"]
    parts = [{"type": "input_image", "image_url": IMAGE["image_url"]["url"]}, {"type": "input_text", "text": "What?"}]  # type: ignore[index]
    body = {"input": [{"role": "user", "content": parts}]}
    reply = await edge_with.post("/v1/responses", body, dict)
    assert reply["output"][0]["content"][0]["text"] == SAID
    assert seeing.chats[-1]["messages"][0]["content"][0] == IMAGE


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url"},
        {"type": "image_url", "image_url": {}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}},
        {"type": "image_url", "image_url": {"url": f"data:text/plain;base64,{PNG}"}},
        {"type": "image_url", "image_url": {"url": f"data:image/png,{PNG}"}},
        {"type": "input_audio", "input_audio": {"data": "~", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"format": "wav"}},
        {"type": "no_such_part"},
    ],
)
async def test_what_is_no_image_is_refused_by_its_place_and_not_sent(
    edge_with: HTTPClient, seeing: SeeingCloud, part: dict[str, Any]
) -> None:
    before = len(seeing.chats)
    with pytest.raises(RequestError) as refusal:
        await edge_with.post("/v1/chat/completions", asked(part), dict)
    assert (refusal.value.param or "").startswith("messages")
    assert len(seeing.chats) == before


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": "collaborative"},
        {"mode": "edge_only"},
        {"model": "lossless"},
        {"privacy": "edge_only"},
        {"min_p": 0.1},
        {"thinking_token_budget": 0},
        {"thinking_token_budget": 5},
    ],
)
async def test_an_image_leaves_the_edge_only_if_it_may(
    edge_with: HTTPClient, seeing: SeeingCloud, fields: dict[str, Any]
) -> None:
    before = len(seeing.chats)
    with pytest.raises(RequestError, match="image_url"):
        await edge_with.post("/v1/chat/completions", asked(IMAGE) | fields, dict)
    named = {"type": "image_url", "image_url": {"url": "https://example.com/secret.png"}}
    for parts in (({"type": "text", "text": "a secret"}, IMAGE), (named,)):
        with pytest.raises(RequestError, match="private"):
            await edge_with.post("/v1/chat/completions", asked(*parts), dict)
    assert len(seeing.chats) == before


async def test_a_cloud_that_refuses_is_heard(edge_with: HTTPClient, seeing: SeeingCloud) -> None:
    seeing.refusal = "At most 0 image(s) may be provided in one prompt."
    try:
        with pytest.raises(RequestError, match="At most 0") as refusal:
            await edge_with.post("/v1/chat/completions", asked(IMAGE), dict)
        assert (refusal.value.status, refusal.value.param) == (400, "messages")
    finally:
        seeing.refusal = ""


async def test_a_spent_budget_asks_no_cloud_about_an_image(edge_with: HTTPClient, seeing: SeeingCloud) -> None:
    settings = "communication.prices.prompt=1", "inference.budget.daily=1.0e-9"
    async with edge_of(seeing.url, *settings) as edge:
        assert (await edge.post("/v1/chat/completions", asked(IMAGE), dict))["collaboration"]["cost"] > 0
        before = len(seeing.chats)
        with pytest.raises(Busy, match="the day's budget is spent"):
            await edge.post("/v1/chat/completions", asked(IMAGE), dict)
        assert len(seeing.chats) == before


async def test_without_a_cloud_there_is_no_answer() -> None:
    async with edge_of("http://127.0.0.1:1") as alone:
        with pytest.raises(FrameworkError, match="cannot reach"):
            await alone.post("/v1/chat/completions", asked(IMAGE), dict)
