"""Mode split over the edge's /v1: what it accepts and refuses, what leaves the edge, and its report and metrics."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from common import config
from common.errors import ConfigError, RequestError, StartError
from common.http.client import HTTPClient
from common.http_server import HTTPServer
from edge.edge_server import build_app
from tests.support.edge_in_process import edge_of
from tests.support.split.fake_split_cloud import NOWHERE, FakeSplitCloud
from tests.support.split.split_edge import split_edge

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Sort 31, 7, 64."}],
    "temperature": 0,
    "mode": "split",
    "max_tokens": 16,
}


@pytest.fixture(scope="module")
def cloud() -> FakeSplitCloud:
    return FakeSplitCloud()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def http(demo_split: Path, cloud: FakeSplitCloud) -> AsyncIterator[HTTPClient]:
    private = "inference.private_patterns=[Zürich]"
    async with split_edge(cloud, demo_split, "edge.split.thresholds=[0.9]", private) as client:
        yield client


async def chat(http: HTTPClient, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await http.post(CHAT, ASKED | fields, dict)
    return answer


async def test_an_answer_reports_its_exits_and_the_clouds_tokens(http: HTTPClient) -> None:
    answer = await chat(http, collaboration={"tokens": True})
    report, (choice,) = answer["collaboration"], answer["choices"]
    assert answer["model"] == "demo-cloud"
    assert (report["mode"], report["lossless"], report["degraded"], report["way"]) == ("split", False, None, None)
    assert report["tokens"]["edge"] == sum(report["exits"].values()) > 0
    assert report["tokens"]["cloud"] == report["cloud_calls"] > 0
    assert report["bytes_up"] > 0 and report["bytes_down"] > 0 and report["edge_latency_ms"] > 0
    sources = [token["source"] for token in choice["collaboration"]["tokens"]]
    assert {source: sources.count(source) for source in ("edge", "cloud")} == {
        source: report["tokens"][source] for source in ("edge", "cloud")
    }
    assert answer["usage"]["completion_tokens"] == len(sources) <= 16


async def test_a_stream_is_the_whole_answer(http: HTTPClient) -> None:
    whole = await chat(http)
    events = [json.loads(event) async for event in http.events(CHAT, ASKED | {"stream": True})]
    assert (
        "".join(event["choices"][0]["delta"]["content"] for event in events)
        == whole["choices"][0]["message"]["content"]
    )
    assert {event["choices"][0].get("provenance") for event in events} >= {"edge", "cloud"}
    assert events[-1]["collaboration"]["exits"] == whole["collaboration"]["exits"]


async def test_a_completion_of_several_prompts_and_choices(http: HTTPClient) -> None:
    body = {"prompt": ["<|user|>What is AI?<|assistant|>"] * 2, "n": 2, "mode": "split", "temperature": 0}
    answer: dict[str, Any] = await http.post("/v1/completions", body, dict)
    assert len({choice["text"] for choice in answer["choices"]}) == 1 and len(answer["choices"]) == 4
    assert sum(answer["collaboration"]["exits"].values()) == answer["collaboration"]["tokens"]["edge"]


async def test_a_stop_string_ends_it(http: HTTPClient) -> None:
    answer = await chat(http, stop=["ed"])
    assert (answer["choices"][0]["message"]["content"], answer["choices"][0]["finish_reason"]) == ("Sort", "stop")


@pytest.mark.parametrize("fields", [{"confidence_threshold": 1.5}, {"use_confidence_check": False}])
async def test_with_all_exits_disabled_every_token_is_the_clouds_and_the_answer_lossless(
    http: HTTPClient, fields: dict[str, Any]
) -> None:
    report = (await chat(http, **fields))["collaboration"]
    assert report["lossless"] and report["tokens"]["edge"] == 0 and report["tokens"]["cloud"] == 16


async def test_a_threshold_of_0_takes_the_first_exit(http: HTTPClient) -> None:
    report = (await chat(http, confidence_threshold=0))["collaboration"]
    assert report["tokens"]["cloud"] == report["exits"]["4"] == 0 < report["exits"]["2"]


@pytest.mark.parametrize(
    "fields", [{"privacy": "edge_only"}, {"messages": [{"role": "user", "content": "What is Zürich?"}]}]
)
async def test_a_private_prompt_is_answered_standalone(
    http: HTTPClient, cloud: FakeSplitCloud, fields: dict[str, Any]
) -> None:
    sessions = len(cloud.sessions)
    report = (await chat(http, use_confidence_check=False, **fields))["collaboration"]
    assert len(cloud.sessions) == sessions
    assert (report["mode"], report["degraded"], report["lossless"]) == ("split", None, False)
    assert report["tokens"]["cloud"] == 0 < report["exits"]["4"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"use_draft_verify": True}, "use_draft_verify"),
        ({"max_draft_tokens": 4}, "max_draft_tokens"),
        ({"way": "rounds"}, "way"),
        ({"confidence_threshold": -1}, None),
        ({"confidence_threshold": 1.5, "mode": "collaborative"}, "confidence_threshold"),
        ({"model": "another"}, "model"),
    ],
)
async def test_fields_without_meaning_for_a_split_model_are_refused_by_name(
    http: HTTPClient, fields: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(RequestError) as refusal:
        await chat(http, **fields)
    assert param is None or refusal.value.param == param
    neutral = {"min_tokens": 0, "repetition_penalty": 1, "model": "demo-cloud"}
    assert (await chat(http, **neutral))["choices"]


async def test_log_probabilities_are_those_of_the_exit_or_the_cloud_and_each_token_says_of_which(
    http: HTTPClient,
) -> None:
    (choice,) = (await chat(http, logprobs=True, top_logprobs=3))["choices"]
    scores, sources = choice["logprobs"]["content"], choice["collaboration"]["tokens"]
    assert len(scores) == len(sources) and {token["source"] for token in sources} == {"edge", "cloud"}
    for score, source in zip(scores, sources, strict=True):
        top = [likely["logprob"] for likely in score["top_logprobs"]]
        assert len(top) == 3 and top == sorted(top, reverse=True) and top[0] <= 0
        assert (source["exit"] is None) == (source["source"] == "cloud")
        if source["source"] == "cloud":
            assert (score["logprob"], top) == (-0.1, [-0.1, -1.1, -2.1])
        else:  # greedy: the likeliest
            assert score["logprob"] == top[0]
    assert {source["exit"] for source in sources} <= {None, "2", "4"}
    (choice,) = (await chat(http))["choices"]
    assert choice["logprobs"] is None and "collaboration" not in choice


async def test_log_probabilities_do_not_change_an_answer_and_come_with_completions_and_streams(
    http: HTTPClient,
) -> None:
    body = {"prompt": "<|user|>Sort 31, 7, 64.<|assistant|>", "mode": "split", "temperature": 0, "max_tokens": 16}
    plain = await http.post("/v1/completions", body, dict)
    (scored,) = (await http.post("/v1/completions", body | {"logprobs": 0}, dict))["choices"]
    assert scored["text"] == plain["choices"][0]["text"]
    assert len(scored["logprobs"]["token_logprobs"]) == plain["usage"]["completion_tokens"]
    events = [json.loads(event) async for event in http.events(CHAT, ASKED | {"stream": True, "logprobs": True})]
    streamed = [score for event in events for score in (event["choices"][0]["logprobs"] or {}).get("content", ())]
    assert [score["logprob"] for score in streamed] == scored["logprobs"]["token_logprobs"]


async def test_a_stop_string_ends_the_work_of_the_segments(http: HTTPClient) -> None:
    """The first exit draws by itself, 200 tokens in a row: once the text has ended, it draws no more of them."""

    async def rows() -> int:
        stats = await http.get("/stats", dict)
        return int(stats["segments"]["segments"][0]["rows"])

    endless = {str(token): -100 for token in range(4)}
    fields = {"confidence_threshold": 0, "temperature": 2.0, "seed": 3, "max_tokens": 200, "logit_bias": endless}
    whole = await chat(http, **fields)
    assert whole["collaboration"]["edge_drawn"] == 200
    text = whole["choices"][0]["message"]["content"]
    before = await rows()
    answer = await chat(http, **fields, stop=[text[8:12]], use_kv_cache=False)
    assert text.startswith(answer["choices"][0]["message"]["content"])
    assert answer["usage"]["completion_tokens"] <= answer["collaboration"]["edge_drawn"] < 100
    while (computed := await rows()) != await rows():
        pass
    assert computed - before < answer["usage"]["prompt_tokens"] + 100


async def test_a_conversation_finds_what_its_turns_have_computed(http: HTTPClient) -> None:
    question = {"role": "user", "content": "What is the day after 30 April?"}
    first = await chat(http, messages=[question])
    said = first["choices"][0]["message"]["content"]
    turn = [question, {"role": "assistant", "content": said}, {"role": "user", "content": "What is 12 + 30?"}]
    second = await chat(http, messages=turn)
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == second["collaboration"]["cached_tokens"] > first["usage"]["prompt_tokens"]
    cold = await chat(http, messages=turn, use_kv_cache=False)
    assert cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert cold["choices"][0]["message"] == second["choices"][0]["message"]
    assert second["collaboration"]["bytes_up"] < cold["collaboration"]["bytes_up"]


async def test_every_model_that_can_be_asked_is_listed(http: HTTPClient) -> None:
    listed = [card["id"] for card in (await http.get("/v1/models", dict))["data"]]
    assert listed[:2] == ["demo-edge", "demo-cloud"], "the default is the first"
    assert "split" in listed
    for name, mode in (("edge", "edge_only"), ("demo-cloud", "split"), ("split", "split")):
        asked = {key: value for key, value in ASKED.items() if key != "mode"} | {"model": name}
        answer = await http.post(CHAT, asked, dict)
        assert (answer["model"], answer["collaboration"]["mode"]) == (name, mode)
        assert (await http.get(f"/v1/models/{name}", dict))["id"] == name
        with pytest.raises(RequestError, match="no model 'another' here"):
            await chat(http, model="another", mode=mode)
    with pytest.raises(RequestError, match="there is 'demo-edge', 'demo-cloud'"):
        await http.get("/v1/models/another", dict)


async def test_other_modes_use_the_edge_model(http: HTTPClient) -> None:
    answer = await chat(http, mode="edge_only")
    assert answer["model"] == "demo-edge" and answer["collaboration"]["exits"] == {}


async def test_metrics_and_stats_count_exits_pending_positions_and_steps(http: HTTPClient) -> None:
    await chat(http)
    async with http.session().get(http.base_url + "/metrics") as response:
        lines = dict(line.rsplit(" ", 1) for line in (await response.text()).splitlines() if not line.startswith("#"))
    exits, steps = 'edgecloud_exit_tokens_total{exit="2"}', 'edgecloud_segment_steps_total{segment="2"}'
    for name in (exits, steps, "edgecloud_owed_positions_total", "edgecloud_cloud_positions_total"):
        assert float(lines[name]) > 0, name
    stats = await http.get("/stats", dict)
    assert stats["segments"]["segments"][0]["steps"] > 0 and stats["segments"]["sequences_lent"] == 0


async def test_a_server_without_a_split_model_says_what_to_set() -> None:
    async with edge_of(NOWHERE) as plain:
        with pytest.raises(RequestError, match=r"set edge\.split\.manifest") as refusal:
            await chat(plain)
        assert refusal.value.param == "mode"


async def test_an_unreachable_cloud_degrades_the_answer(demo_split: Path) -> None:
    async with edge_of(NOWHERE, f"edge.split.manifest={demo_split}") as http:
        report = (await chat(http, use_confidence_check=False))["collaboration"]
        assert "cannot reach" in report["degraded"] and report["exits"]["4"] == report["tokens"]["edge"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["edge.split.thresholds=[0.1, 0.2, 0.3]"], r"^edge\.split\.thresholds: 3 thresholds, but .* layers 2, 4"),
        (["edge.split.manifest=nowhere"], r"^split manifest nowhere: No such file"),
    ],
)
async def test_a_split_model_that_does_not_fit_fails_the_start(
    demo_split: Path, settings: list[str], message: str
) -> None:
    flags = [f"edge.split.manifest={demo_split}", f"communication.cloud_endpoint={NOWHERE}", *settings]
    server = HTTPServer(build_app(config.load(flags=flags, environment={})), "127.0.0.1", 0)
    with pytest.raises((ConfigError, StartError), match=message):
        await server.start()
    await server.stop()
