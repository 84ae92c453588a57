"""A real edge on a server with OpenAI's API: what it hands over, what it says, and what it does without it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cli.demo import free_ports
from common.config_values import Secret
from common.errors import ConfigError, EndpointError, RequestError
from common.http.client import HTTPClient
from common.http.error_replies import Busy
from tests.support.edge_in_process import edge_of
from tests.support.fake_openai import KEY, WORDS, FakeOpenAI, serving

QUESTION = "What is AI?"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 40}
SAID = "".join(WORDS)
NEVER_SURE, ALWAYS_SURE = {"confidence_threshold": 1.0, "product_threshold": 1.0}, {"confidence_threshold": 0.0}


@asynccontextmanager
async def edge_on(fake: FakeOpenAI, *settings: str, **entry: Any) -> AsyncIterator[HTTPClient]:
    clouds = json.dumps([{"url": fake.url, "kind": "openai", "api_key": KEY} | entry])
    async with edge_of("http://localhost:8081", f"communication.clouds={clouds}", *settings) as client:
        yield client


async def ask(edge: HTTPClient, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await edge.post("/v1/chat/completions", CHAT | fields, dict)
    return answer


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


async def alone(edge: HTTPClient) -> str:
    return text_of(await ask(edge, mode="edge_only"))


async def gate_within(edge: HTTPClient) -> float:
    """A threshold between the least confident token of the edge's answer and the others, not the first one."""
    answer = await ask(edge, mode="edge_only", collaboration={"tokens": True})
    scores = [token["confidence"] for token in answer["choices"][0]["collaboration"]["tokens"]]
    lowest = min(scores[1:])
    assert lowest < scores[0], "the question's first token is one of the confident ones"
    return float(lowest) + 1.0e-9


async def test_the_server_goes_on_with_the_text_of_the_edge_where_both_write_prompts_alike() -> None:
    async with serving() as fake, edge_on(fake) as edge:
        gate = await gate_within(edge)
        answer = await ask(edge, confidence_threshold=gate, product_threshold=0, collaboration={"tokens": True})
        ((path, body),) = fake.asked
        assert (path, fake.keys) == ("/completions", [f"Bearer {KEY}"])
        begun = body["prompt"].removeprefix(f"<|user|>{QUESTION}<|assistant|>")
        assert begun
        assert (await alone(edge)).startswith(begun)
        assert text_of(answer) == begun + SAID
        report, tokens = answer["collaboration"], answer["choices"][0]["collaboration"]["tokens"]
        assert {token["source"] for token in tokens} == {"edge", "cloud"}
        assert report["tokens"]["edge"] + report["tokens"]["cloud"] == answer["usage"]["completion_tokens"]
        assert body["max_tokens"] == CHAT["max_tokens"] - report["tokens"]["edge"]
        assert (report["lossless"], report["cloud_calls"], report["cloud_steps"]) == (False, 1, len(WORDS))
        assert "verifies no drafts" in report["mode_because"]


async def test_it_goes_on_with_the_message_where_it_writes_prompts_in_another_way() -> None:
    async with serving("llamacpp") as fake:
        fake.template = "[INST]{content}[/INST]"
        async with edge_on(fake) as edge:
            answer = await ask(edge, confidence_threshold=await gate_within(edge), product_threshold=0)
        ((path, body),) = fake.asked
        assert path == "/chat/completions"
        user, begun = body["messages"]
        assert (user, begun["role"]) == (CHAT["messages"][0], "assistant")
        assert begun["content"]
        assert text_of(answer) == begun["content"] + SAID


async def test_a_server_that_cannot_go_on_gives_the_whole_answer() -> None:
    async with serving("somebody") as fake, edge_on(fake) as edge:
        answer = await ask(edge, confidence_threshold=await gate_within(edge), product_threshold=0)
        assert fake.asked[0][1]["messages"] == CHAT["messages"]
        assert text_of(answer) == SAID
        assert answer["collaboration"]["tokens"]["edge"] == 0
        kept = await ask(edge, **ALWAYS_SURE, product_threshold=0)
        assert text_of(kept) == await alone(edge)
        assert len(fake.asked) == 1, "the edge was confident of all"


@pytest.mark.parametrize(("setting", "path"), [("text", "/completions"), ("message", "/chat/completions")])
async def test_the_config_may_say_how_it_goes_on(setting: str, path: str) -> None:
    async with serving("somebody") as fake, edge_on(fake, continuation=setting) as edge:
        assert text_of(await ask(edge, **NEVER_SURE)) == SAID
        assert fake.asked[0][0] == path


async def test_streamed_text_arrives_as_the_server_sends_it() -> None:
    async with serving() as fake, edge_on(fake) as edge:
        fake.pause = 0.05
        body = CHAT | NEVER_SURE | {"stream": True}
        events = [json.loads(data) async for data in edge.events("/v1/chat/completions", body)]
        pieces = [event["choices"][0] for event in events if event["choices"]]
        said = [piece["delta"].get("content") for piece in pieces if piece.get("provenance") == "cloud"]
        assert said == list(WORDS)


async def test_a_lossless_answer_is_the_clouds_own_by_default_and_refused_where_it_is_asked_for() -> None:
    async with serving() as fake, edge_on(fake, "inference.features.use_confidence_check=false") as edge:
        report = (await ask(edge))["collaboration"]
        assert (report["mode"], report["lossless"]) == ("cloud_only", True)
        assert report["mode_because"] == "the cloud verifies no drafts, so it answers alone"
        for fields in ({"use_confidence_check": False}, {"model": "lossless"}):
            with pytest.raises(RequestError, match="a lossless answer of both needs a cloud that verifies drafts"):
                await ask(edge, **fields)
        assert text_of(await ask(edge, mode="cloud_only")) == SAID
        assert text_of(await ask(edge, model="gated", **NEVER_SURE)) == SAID


async def test_what_only_the_edge_can_score_or_restrict_stays_there() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}}
    async with serving() as fake, edge_on(fake) as edge:
        for fields in ({"logprobs": True}, {"response_format": schema}):
            report = (await ask(edge, **fields, **NEVER_SURE))["collaboration"]
            assert report["mode"] == "edge_only"
        private = await ask(edge, privacy="edge_only", **NEVER_SURE)
        assert private["collaboration"]["cloud_calls"] == len(fake.asked) == 0


async def test_a_prompt_that_is_too_long_for_the_edge_goes_to_the_cloud() -> None:
    async with serving() as fake, edge_on(fake, "edge.model.context_length=64") as edge:
        await ask(edge, **NEVER_SURE)  # by then the cloud has told its context
        long = [{"role": "user", "content": "word " * 300}]
        answer = await ask(edge, messages=long, **ALWAYS_SURE)
        assert text_of(answer) == SAID
        assert not answer["collaboration"]["degraded"]


async def test_a_lost_server_leaves_the_answer_to_the_edge_and_is_asked_again_when_it_is_back() -> None:
    breaker = "communication.breaker.probe_seconds=0.05"
    async with serving() as fake, edge_on(fake, breaker, "communication.breaker.failures=1") as edge:
        fake.break_after = 2
        half = await ask(edge, **NEVER_SURE)
        assert text_of(half).startswith("".join(WORDS[:2]))
        assert "broke the connection" in half["collaboration"]["degraded"]
        fake.status = 503
        lost = await ask(edge, **NEVER_SURE)
        assert text_of(lost) == await alone(edge)
        assert lost["collaboration"]["degraded"]
        fake.status, fake.break_after = 200, None
        while (await ask(edge, **NEVER_SURE))["collaboration"]["degraded"]:
            await asyncio.sleep(0.05)


async def test_with_the_first_cloud_down_from_the_start_the_second_one_takes_part_in_the_first_answer() -> None:
    (closed,) = free_ports(1)
    async with serving() as fake:
        urls = f"http://127.0.0.1:{closed}/v1", fake.url
        clouds = json.dumps([{"url": url, "kind": "openai", "api_key": KEY} for url in urls])
        async with edge_of("http://localhost:8081", f"communication.clouds={clouds}") as edge:
            answer = await ask(edge, **NEVER_SURE)
            assert text_of(answer) == SAID
            assert answer["collaboration"]["degraded"] is None


async def test_a_client_that_leaves_ends_the_servers_work_at_once() -> None:
    async with serving() as fake, edge_on(fake) as edge:
        fake.pause = 0.2
        fake.words = WORDS * 100
        events = edge.events("/v1/chat/completions", CHAT | NEVER_SURE | {"stream": True})
        await anext(events)
        await events.aclose()
        async with asyncio.timeout(30):
            await fake.left.wait()


@pytest.mark.parametrize(
    "setting", ["edge.model.path=''", "inference.online.target_cloud_rate=0.3", "edge.split.manifest=models/demo-split"]
)
async def test_what_needs_clouds_that_verify_ends_the_start(setting: str) -> None:
    async with serving() as fake:
        with pytest.raises(ConfigError, match="needs clouds of kind edgecloud"):
            async with edge_on(fake, setting):
                pass


# Whole requests

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]}]
SCORED = {"mode": "cloud_only", "logprobs": True}


@pytest.mark.parametrize("fields", [{"messages": PICTURE}, {"best_of": 3}, {"repeat_penalty": 1.1}, SCORED])
async def test_a_request_with_what_the_edge_does_not_support_goes_to_the_cloud_as_it_is(fields: dict[str, Any]) -> None:
    async with serving() as fake, edge_on(fake) as edge:
        answer = await ask(edge, **fields)
        ((path, body),) = fake.asked
        assert path == "/chat/completions"
        own = {name: value for name, value in (CHAT | fields).items() if name != "mode"}
        assert body == own | {"model": "words"}, "without the fields that only the edge knows"
        assert text_of(answer) == SAID
        report = answer["collaboration"]
        assert (report["mode"], report["tokens"]["cloud"], report["cached_tokens"]) == ("cloud_only", len(WORDS), 5)
        assert report["mode_because"].startswith("the cloud answers alone: ")
        async with edge.session().get(edge.base_url + "/metrics") as metrics:
            assert f'edgecloud_answer_tokens_total{{provenance="cloud"}} {len(WORDS)}.0' in await metrics.text()


@pytest.mark.parametrize("usage", [True, False])
async def test_such_a_request_is_streamed_as_the_cloud_streams_it(usage: bool) -> None:
    async with serving() as fake, edge_on(fake) as edge:
        options = {"stream": True, "stream_options": {"include_usage": usage}}
        events = [json.loads(one) async for one in edge.events("/v1/chat/completions", CHAT | SCORED | options)]
        choices = [event["choices"][0] for event in events if event["choices"]]
        assert "".join(choice["delta"]["content"] for choice in choices) == SAID
        assert {choice["provenance"] for choice in choices} == {"cloud"}
        assert events[-1]["collaboration"]["tokens"]["cloud"] == len(WORDS)
        assert ("usage" in events[-1]) == usage


async def test_a_whole_answer_may_take_longer_than_a_call() -> None:
    async with serving() as fake, edge_on(fake, "communication.http_client.timeout=0.5") as edge:
        await ask(edge, **NEVER_SURE)  # by then the cloud has told its model
        fake.pause = 1.0
        assert text_of(await ask(edge, **SCORED)) == SAID


async def test_tools_go_to_the_cloud_where_the_config_says_so_or_it_is_asked_alone() -> None:
    async with serving() as fake:
        async with edge_on(fake) as edge:
            await ask(edge, tools=[TOOL], **ALWAYS_SURE, product_threshold=0)
            assert not fake.asked
            await ask(edge, tools=[TOOL], mode="cloud_only")
            assert fake.asked.pop()[1]["tools"] == [TOOL]
        async with edge_on(fake, "inference.escalate=[tools]") as edge:
            await ask(edge, tools=[TOOL], **ALWAYS_SURE)
            assert fake.asked.pop()[1]["tools"] == [TOOL]
            with pytest.raises(RequestError, match="best_of is not supported by the edge server"):
                await ask(edge, best_of=3)


async def test_a_name_of_the_edge_keeps_all_at_the_edge() -> None:
    async with (
        serving() as fake,
        edge_on(fake, "inference.aliases={mine: edge}", "inference.escalate=[tools, fields]") as edge,
    ):
        for name in ("edge", "mine"):
            report = (await ask(edge, model=name, tools=[TOOL]))["collaboration"]
            assert report["mode"] == "edge_only"
            with pytest.raises(RequestError, match="best_of is not supported by the edge server"):
                await ask(edge, model=name, best_of=3)
        assert not fake.asked


async def test_what_may_not_leave_the_edge_is_refused_there() -> None:
    async with serving() as fake, edge_on(fake, "inference.private_patterns=['top secret']") as edge:
        secret = [{"role": "user", "content": [{"type": "text", "text": "top secret"}, PICTURE[0]["content"][0]]}]  # type: ignore[index]
        for fields in ({"messages": secret}, {"messages": PICTURE, "privacy": "edge_only"}):
            with pytest.raises(RequestError, match="image_url"):
                await ask(edge, **fields)
        await ask(edge, tools=[TOOL], messages=[{"role": "user", "content": "top secret"}])
        named = TOOL | {"function": {"name": "f", "parameters": {"properties": {"top secret": {"type": "string"}}}}}
        await ask(edge, tools=[named], mode="cloud_only")
        for ids in ([5, 6], [[5, 6], [7]]):
            with pytest.raises(RequestError, match="best_of is not supported"):
                await edge.post("/v1/completions", {"prompt": ids, "best_of": 3}, dict)
        assert not fake.asked


@pytest.mark.parametrize("hidden", [{"reasoning_content": "top secret"}, {"name": "top secret"}])
async def test_what_the_edges_template_leaves_out_may_be_private_too(hidden: dict[str, str]) -> None:
    turns = [*CHAT["messages"], {"role": "assistant", "content": "Hm."} | hidden, *CHAT["messages"]]
    async with serving("somebody") as fake, edge_on(fake, "inference.private_patterns=['top secret']") as edge:
        report = (await ask(edge, messages=turns, **NEVER_SURE))["collaboration"]
        assert (report["mode"], fake.asked) == ("edge_only", [])


async def test_a_cloud_without_a_route_for_embeddings_still_answers() -> None:
    async with serving() as fake, edge_on(fake, "communication.breaker.failures=1") as edge:
        for path in ("/v1/embeddings", "/v1/rerank"):
            with pytest.raises(EndpointError, match="404"):
                await edge.post(path, {"input": "x"}, dict)
        assert text_of(await ask(edge, **NEVER_SURE)) == SAID


@pytest.mark.parametrize(("owner", "salts"), [("vllm", 2), ("llamacpp", 0)])
async def test_each_api_key_has_a_part_of_its_own_of_the_clouds_cache(owner: str, salts: int) -> None:
    async with serving(owner) as fake, edge_on(fake, "edge.server.api_keys=[key-of-ann, key-of-bob]") as edge:
        for key in ("key-of-ann", "key-of-bob"):
            async with HTTPClient(edge.base_url, api_key=Secret(key)) as client:
                await ask(client, **SCORED, cache_salt="own")
        assert len({body["cache_salt"] for _, body in fake.asked} - {"own"}) == salts


# Costs

PRICES = "communication.prices={prompt: 1, completion: 10, edge_hour: 0.01}"


async def test_an_answer_has_a_cost_and_a_spent_budget_leaves_the_rest_of_the_day_to_the_edge() -> None:
    async with serving() as fake, edge_on(fake, PRICES, "inference.budget.daily=1.0e-9") as edge:
        answer = await ask(edge, **NEVER_SURE)
        report, prompt = answer["collaboration"], answer["usage"]["prompt_tokens"]
        of_cloud = (prompt + 10 * report["tokens"]["cloud"]) / 1e6
        assert report["cost"] == pytest.approx(of_cloud + 0.01 * report["edge_latency_ms"] / 3.6e6)
        assert (await edge.get("/stats", dict))["costs"]["today"] == {"": report["cost"]}
        async with edge.session().get(edge.base_url + "/metrics") as metrics:
            assert f"edgecloud_cost_total {report['cost']!r}" in await metrics.text()
        for fields in ({}, {"mode": "cloud_only"}):
            later = (await ask(edge, **fields, **NEVER_SURE))["collaboration"]
            assert (later["mode"], later["tokens"]["cloud"]) == ("edge_only", 0)
            assert later["mode_because"] == "the day's budget is spent: the edge answers alone"
        with pytest.raises(RequestError, match="not supported"):
            await ask(edge, best_of=3)
        assert len(fake.asked) == 1


@pytest.mark.parametrize("streams", [True, False])
async def test_a_client_that_leaves_early_pays_for_what_the_cloud_has_read(streams: bool) -> None:
    async with serving() as fake, edge_on(fake, PRICES) as edge:
        long = [{"role": "user", "content": "word " * 400}]
        body = CHAT | SCORED | {"messages": long, "stream": streams}
        fake.pause = 0.2
        if streams:
            events = edge.events("/v1/chat/completions", body)
            await anext(events)
            await events.aclose()
        else:
            leaving = asyncio.create_task(ask(edge, **body))
            while not fake.asked:
                await asyncio.sleep(0.01)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
        async with asyncio.timeout(30):
            while (spent := (await edge.get("/stats", dict))["costs"]["today"].get("", 0.0)) == 0:
                await asyncio.sleep(0.05)
        assert spent >= 500e-6


async def test_a_spent_budget_may_refuse_what_the_cloud_would_take_part_in() -> None:
    settings = PRICES, "inference.budget={daily: 1.0e-9, when_spent: refuse}"
    async with serving() as fake, edge_on(fake, *settings) as edge:
        assert (await ask(edge, best_of=3))["collaboration"]["cost"] == pytest.approx(71e-6), "of the relay"
        with pytest.raises(Busy, match=r"the day's budget is spent: try again in \d+ s"):
            await ask(edge)
        assert text_of(await ask(edge, mode="edge_only"))
