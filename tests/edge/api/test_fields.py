"""Fields that other servers take: honoured, taken without effect, or refused by name; and models as ways to answer."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import pytest_asyncio
from openai.types.chat import completion_create_params as chat_params
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming

from benchmarks.fake_cloud import FakeCloud
from common.errors import LONGEST_TEXT, FrameworkError, RequestError
from common.http.client import HTTPClient
from common.protocol import codec
from common.protocol.openai import ChatRequest, CompletionRequest, GenerationRequest
from common.protocol.openai_fields import IGNORED, UNSUPPORTED
from common.protocol.openai_sampling import SamplingFields
from tests.conftest import Edge
from tests.edge.answers.test_context_limits import ASK
from tests.support.edge_calls import CHAT, PLAIN, chat, completion, refused, streamed, texts
from tests.support.edge_in_process import edge_of

USAGE = (Path(__file__).parents[3] / "docs" / "USAGE.md").read_text()
OPENAI = [
    (ChatRequest, CHAT, chat_params.CompletionCreateParamsNonStreaming),
    (CompletionRequest, PLAIN, CompletionCreateParamsNonStreaming),
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(fake: FakeCloud) -> AsyncIterator[HTTPClient]:
    """An edge with a cloud, at its defaults."""
    async with edge_of(fake.url, 'inference.aliases={"gpt-4o": "lossless", "openai/gpt": "edge"}') as made:
        yield made


def test_the_docs_list_the_fields_without_effect() -> None:
    listed = re.search(r"<!-- ignored fields -->(.*?)<!--", USAGE, re.DOTALL)
    assert listed is not None
    assert tuple(re.findall(r"`(\w+)`", listed[1])) == IGNORED


@pytest.mark.parametrize(("type_", "base", "parameters"), OPENAI, ids=["chat", "text"])
def test_null_is_as_if_a_field_of_openai_were_absent(type_: Any, base: dict[str, Any], parameters: Any) -> None:
    for name in {*get_type_hints(parameters), "stream"} - {"messages", "prompt"}:
        request: GenerationRequest = codec.decode(codec.encode(base | {name: None}), type_)
        request.refuse_unsupported()
        absent = codec.decode(codec.encode({key: base[key] for key in base if key != name}), type_)
        assert name in UNSUPPORTED or codec.encode(request) == codec.encode(absent), name


SHORT = {**CHAT, "max_tokens": 4}
NULLS = dict.fromkeys(["reasoning_format", "n_cmpl", "tfs_z", "tools", "max_completion_tokens", "echo", "unheard_of"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", SHORT),
        ("/v1/completions", {**PLAIN, "max_tokens": 4}),
        ("/v1/responses", {"input": "What is AI?", "max_output_tokens": 4}),
        ("/v1/messages", SHORT),
        ("/v1/messages/count_tokens", {"messages": CHAT["messages"]}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [5]}),
    ],
)
async def test_null_is_as_if_a_field_of_any_name_were_absent(edge: Edge, path: str, body: dict[str, Any]) -> None:
    assert await edge.http.post(path, NULLS | {"model": None, "use_draft_verify": None} | body, dict)


async def test_of_a_long_name_of_a_model_only_the_ends_are_returned(edge: Edge) -> None:
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/messages", SHORT)):
        status, error = await refused(edge, path, body | {"model": "m" * 3_000_000})
        assert (status, error["param"]) == (404, "model")
        assert len(error["message"]) < 2 * LONGEST_TEXT


@pytest.mark.parametrize("value", [5, "x", {"a": [1]}, True])
async def test_a_field_without_effect_is_taken_with_any_value(edge: Edge, value: object) -> None:
    plain = await completion(edge)
    assert texts(await completion(edge, **dict.fromkeys(IGNORED, value))) == texts(plain)


def test_a_field_that_would_change_the_answer_is_refused_by_name() -> None:
    supported = [one.__annotations__ for one in (CompletionRequest, GenerationRequest, SamplingFields)]
    for name in set(UNSUPPORTED).difference(*supported):
        request = codec.decode(codec.encode(PLAIN | {name: ["unheard", "of"]}), CompletionRequest)
        with pytest.raises(RequestError) as refusal:
            request.refuse_unsupported()
        assert refusal.value.param == name


@pytest.mark.parametrize("fields", [{"suffix": ""}, {"best_of": 1}, {"logit_bias": {}}, {"repeat_penalty": 1}])
async def test_a_neutral_value_is_taken(edge: Edge, fields: dict[str, Any]) -> None:
    assert await completion(edge, max_tokens=1, **fields)


async def test_a_private_answer_says_why_it_is_the_edges(pair: HTTPClient) -> None:
    for fields, because in ({"mode": "collaborative"}, "the request is private"), ({"mode": "edge_only"}, None):
        report = (await pair.post("/v1/completions", ASK | {"private": True} | fields, dict))["collaboration"]
        assert (report["mode"], report["mode_because"]) == ("edge_only", because)


async def test_a_field_that_only_the_edge_has_makes_it_answer_alone_unless_another_mode_is_named(
    pair: HTTPClient,
) -> None:
    report = (await pair.post("/v1/completions", ASK | {"min_p": 0.1}, dict))["collaboration"]
    assert report["mode"] == "edge_only" and "min_p" in report["mode_because"]
    for choice in ({"mode": "collaborative"}, {"model": "cloud"}, {"model": "gated"}):
        with pytest.raises(RequestError, match="min_p"):
            await pair.post("/v1/completions", ASK | {"min_p": 0.1} | choice, dict)


async def test_a_bias_makes_tokens_certain_or_impossible(edge: Edge) -> None:
    plain = await completion(edge)
    ids = (await edge.http.post("/tokenize", {"prompt": texts(plain)[0], "add_special_tokens": False}, dict))["tokens"]
    first = str(ids[0])
    without = texts(await completion(edge, logit_bias={first: -100}))[0]
    assert without != texts(plain)[0]
    with_it = await completion(edge, logit_bias={first: 100}, max_tokens=4, temperature=1, presence_penalty=2)
    again = await edge.http.post("/tokenize", {"prompt": texts(with_it)[0], "add_special_tokens": False}, dict)
    assert set(again["tokens"]) == {ids[0]} or texts(with_it)[0] == texts(plain)[0][:1] * 4
    for wrong in ({"x": 1}, {"-1": 1}, {"99999999": 1}, {first: 101}):
        with pytest.raises(RequestError) as refusal:
            await completion(edge, logit_bias=wrong)
        assert (refusal.value.param or "").startswith("logit_bias")


async def test_answers_go_on_after_their_end_and_not_end_too_early_if_asked(edge: Edge) -> None:
    ended = (await completion(edge, max_tokens=200))["usage"]["completion_tokens"]
    assert ended < 200
    on = await completion(edge, max_tokens=ended + 20, ignore_eos=True)
    assert (on["usage"]["completion_tokens"], on["choices"][0]["finish_reason"]) == (ended + 20, "length")
    later = await completion(edge, max_tokens=200, min_tokens=ended + 1)
    assert later["usage"]["completion_tokens"] > ended
    assert texts(later)[0].startswith(texts(await completion(edge, max_tokens=200))[0])


@pytest.mark.parametrize(
    ("older", "wanted"),
    [
        ({"guided_choice": ["blue", "green"]}, ("blue", "green")),
        ({"guided_regex": "[ab]"}, ("a", "b")),
        ({"guided_json": {"enum": [7]}}, ("7",)),
        ({"guided_grammar": 'start: "<" ">"', "guided_decoding_backend": "guidance"}, ("<>",)),
        ({"guided_choice": ["blue"], "structured_outputs": {"choice": ["red"]}}, ("red",)),
    ],
)
async def test_an_older_name_of_structured_outputs_means_the_same_unless_the_newer_is_there(
    edge: Edge, older: dict[str, Any], wanted: tuple[str, ...]
) -> None:
    assert (await chat(edge, **older))["choices"][0]["message"]["content"] in wanted


async def test_a_stop_token_ends_the_answer(edge: Edge) -> None:
    ids = (await edge.http.post("/tokenize", {"prompt": texts(await completion(edge))[0]}, dict))["tokens"]
    answer = await completion(edge, stop_token_ids=[ids[3]])
    assert answer["usage"]["completion_tokens"] == ids.index(ids[3]) + 1
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_a_text_completion_without_a_length_has_openais(edge: Edge) -> None:
    body = {"prompt": PLAIN["prompt"], "ignore_eos": True, "max_tokens": None}
    assert (await edge.http.post("/v1/completions", body, dict))["usage"]["completion_tokens"] == 16


async def test_the_length_may_be_llama_servers(edge: Edge) -> None:
    body = {"prompt": PLAIN["prompt"], "ignore_eos": True, "n_predict": 5}
    assert (await edge.http.post("/v1/completions", body, dict))["usage"]["completion_tokens"] == 5
    whole = await completion(edge, max_tokens=None, n_predict=-1)
    assert whole["choices"][0]["finish_reason"] == "stop" and whole["usage"]["completion_tokens"] > 16


async def test_without_the_cloud_an_echo_is_scored_at_the_edge_and_says_so() -> None:
    async with edge_of("http://127.0.0.1:1") as alone:
        answer = await alone.post("/v1/completions", ASK | {"prompt": "What is AI?", "echo": True, "logprobs": 0}, dict)
        assert answer["collaboration"]["degraded"] is not None
        scores = answer["choices"][0]["logprobs"]["token_logprobs"]
        assert len(scores) == answer["usage"]["total_tokens"]
        assert scores[0] is None and None not in scores[1:]


async def test_timings_and_usage_come_with_each_event_if_asked(edge: Edge) -> None:
    assert "timings" not in await chat(edge)
    prompt = "What is the port of HTTPS? " * 5
    whole = await completion(edge, prompt=prompt, timings_per_token=True)
    again = await completion(edge, prompt=prompt, timings_per_token=True)
    for answer in (whole, again):
        timings, usage = answer["timings"], answer["usage"]
        assert timings["prompt_n"] + timings["cache_n"] == usage["prompt_tokens"]
        assert timings["cache_n"] == usage["prompt_tokens_details"]["cached_tokens"]
        assert timings["predicted_n"] == usage["completion_tokens"]
    assert again["timings"]["prompt_n"] == 1
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = await streamed(edge, "/v1/chat/completions", stream_options=options, timings_per_token=True)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts) and counts[-1] == events[-1]["timings"]["predicted_n"] > 3
    assert all("timings" in event for event in events)


# Models


@pytest.mark.parametrize(
    ("model", "mode", "lossless"),
    [
        ("demo-edge", "collaborative", False),
        ("auto", "collaborative", False),
        ("gated", "collaborative", False),
        ("lossless", "collaborative", True),
        ("gpt-4o", "collaborative", True),
        ("edge", "edge_only", False),
        ("cloud", "cloud_only", True),
        ("route", "route", True),
    ],
)
async def test_the_model_chooses_who_answers(pair: HTTPClient, model: str, mode: str, lossless: bool) -> None:
    answer = await pair.post("/v1/completions", ASK | {"model": model}, dict)
    assert (answer["collaboration"]["mode"], answer["collaboration"]["lossless"]) == (mode, lossless)
    assert answer["model"] == model
    named = await pair.post("/v1/completions", ASK | {"model": model, "mode": "edge_only"}, dict)
    assert named["collaboration"]["mode"] == "edge_only"


async def test_all_models_that_can_be_asked_are_listed(pair: HTTPClient) -> None:
    listed = [card["id"] for card in (await pair.get("/v1/models", dict))["data"]]
    assert listed == ["demo-edge", "auto", "lossless", "gated", "edge", "cloud", "route", "gpt-4o", "openai/gpt"]
    for name in listed:
        assert (await pair.get(f"/v1/models/{name}", dict))["id"] == name
    for unknown in ("split", "another"):
        with pytest.raises(RequestError, match="lossless"):
            await pair.post("/v1/completions", ASK | {"model": unknown}, dict)


async def test_the_configured_mode_is_that_of_requests_that_choose_none(fake: FakeCloud) -> None:
    async with edge_of(fake.url, "inference.mode=edge_only") as edge:
        assert (await edge.post("/v1/completions", ASK, dict))["collaboration"]["mode"] == "edge_only"
        other = await edge.post("/v1/completions", ASK | {"model": "lossless"}, dict)
        assert other["collaboration"]["mode"] == "collaborative"
    with pytest.raises(FrameworkError, match="split"):
        async with edge_of(fake.url, "inference.mode=split"):
            pass
