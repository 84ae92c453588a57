"""POST /infill as llama.vim and llama.vscode send it: text, limits, fields, and the cloud's own text in every mode."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from benchmarks.fake_cloud import FakeCloud
from common.errors import RequestError
from common.http.client import HTTPClient
from edge.dialects.line_limits import LineLimits
from tests.conftest import Edge
from tests.support.edge_in_process import edge_of
from tests.support.gguf_copies import FILL_IN, with_fill_in

ASK: dict[str, Any] = {
    "input_prefix": "What is the capital of France? The capital of",
    "input_suffix": "\nThat is all.",
    "temperature": 0,
    "n_predict": 12,
}
LLAMA_VIM: dict[str, Any] = {
    "id_slot": 0,
    "input_extra": [{"text": "x = 1\n", "time": 3, "filename": "a.py"}],
    "prompt": " France",
    "stop": ["\n\n\n"],
    "n_indent": 0,
    "top_k": 40,
    "top_p": 0.9,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 60_000,
    "response_fields": ["content", "timings/prompt_n", "timings/predicted_per_second", "truncated", "tokens_cached"],
}
LLAMA_VSCODE: dict[str, Any] = {
    **{name: LLAMA_VIM[name] for name in ("id_slot", "input_extra", "prompt", "samplers", "cache_prompt")},
    "top_k": 40,
    "top_p": 0.99,
    "stream": False,
    "n_cmpl": 3,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 60_000,
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(fake: FakeCloud, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HTTPClient]:
    """An edge whose model fills in, with a cloud."""
    file = with_fill_in(tmp_path_factory.mktemp("infill") / "fills-in.gguf")
    async with edge_of(fake.url, f"edge.model.path={file}") as made:
        yield made


async def infill(pair: HTTPClient, **fields: Any) -> Any:
    return await pair.post("/infill", ASK | fields, Any)


async def test_the_answer_is_that_of_the_same_prompt_in_token_ids(pair: HTTPClient) -> None:
    async def ids(text: str) -> list[int]:
        asked = {"prompt": text, "add_special_tokens": False}
        return list((await pair.post("/tokenize", asked, dict))["tokens"])

    repository = [FILL_IN["fim_rep"], *await ids("myproject\n"), FILL_IN["fim_sep"], *await ids("filename\n")]
    before, after = await ids(ASK["input_prefix"]), await ids(ASK["input_suffix"])
    prompt = [*repository, FILL_IN["fim_pre"], *before, FILL_IN["fim_suf"], *after, FILL_IN["fim_mid"]]
    for mode in ("edge_only", "cloud_only", "collaborative"):
        plain = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "mode": mode, "use_confidence_check": False}
        text = (await pair.post("/v1/completions", plain, dict))["choices"][0]["text"]
        answer = await infill(pair, mode=mode, use_confidence_check=False)
        assert answer["content"] == text
        assert answer["tokens_evaluated"] == len(prompt) == answer["timings"]["prompt_n"] + answer["timings"]["cache_n"]


async def test_a_lossless_answer_is_the_clouds_own(pair: HTTPClient) -> None:
    alone = await infill(pair, model="cloud")
    for way in ("rounds", "continuous"):
        answer = await infill(pair, model="lossless", way=way)
        assert answer["content"] == alone["content"]
        assert answer["collaboration"]["lossless"] and answer["collaboration"]["mode"] == "collaborative"


async def test_it_takes_what_editors_send(pair: HTTPClient) -> None:
    answer = await infill(pair, **LLAMA_VIM)
    assert answer.keys() == set(LLAMA_VIM["response_fields"])
    assert isinstance(answer["content"], str) and answer["timings/prompt_n"] > 0
    several = await infill(pair, **LLAMA_VSCODE)
    assert [one["index"] for one in several] == [0, 1, 2]


async def test_a_request_for_no_tokens_reads_the_prompt_for_the_next_one(pair: HTTPClient) -> None:
    fields = {"mode": "edge_only", "input_prefix": "Count from one to ten, and then back: one, two," * 3}
    warm = await infill(pair, **fields, n_predict=0, samplers=[], response_fields=[""])
    assert warm == {}
    answer = await infill(pair, **fields)
    assert answer["timings"]["cache_n"] == answer["tokens_evaluated"] - 1
    assert (await infill(pair, **fields, n_predict=0))["content"] == ""


async def test_a_stream_adds_up_to_the_whole(pair: HTTPClient) -> None:
    whole = await infill(pair, mode="edge_only")
    body = ASK | {"mode": "edge_only", "stream": True}
    events = [json.loads(event) async for event in pair.events("/infill", body)]
    assert "".join(event["content"] for event in events) == whole["content"] != ""
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["stop_type"] == whole["stop_type"]


async def test_a_stop_string_ends_it_and_is_named(pair: HTTPClient) -> None:
    whole = (await infill(pair, mode="edge_only"))["content"]
    answer = await infill(pair, mode="edge_only", stop=[whole[-1]])
    assert answer["content"] == whole[: whole.index(whole[-1])]
    assert (answer["stop_type"], answer["stopping_word"]) == ("word", whole[-1])


async def test_samplers_that_are_not_named_are_off(pair: HTTPClient) -> None:
    fields = {"mode": "edge_only", "seed": 1, "temperature": 2, "top_k": 1}
    greedy = (await infill(pair, mode="edge_only"))["content"]
    assert (await infill(pair, **fields, samplers=["top_k"]))["content"] == greedy
    assert (await infill(pair, **fields, samplers=["temperature"]))["content"] != greedy


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"input_prefix": None}, "input_prefix"),
        ({"input_extra": [{"filename": "x"}]}, "input_extra"),
        ({"input_extra": "x"}, "input_extra"),
        ({"prompt": ["x"]}, "prompt"),
        ({"n_cmpl": 0}, "n_cmpl"),
        ({"lora": [{"id": 0, "scale": 0.5}]}, "lora"),
        ({"n_predict": 100_000}, "prompt"),
        ({"suffix": "x"}, "suffix"),
    ],
)
async def test_a_wrong_field_is_named(pair: HTTPClient, fields: dict[str, Any], name: str) -> None:
    with pytest.raises(RequestError) as refusal:
        await infill(pair, **fields)
    assert refusal.value.status == 400 and (refusal.value.param or "").startswith(name)


async def test_a_model_that_does_not_fill_in_says_so(edge: Edge) -> None:
    for path, body in (("/infill", ASK), ("/v1/completions", {"prompt": "x", "suffix": "y"})):
        with pytest.raises(RequestError, match="FIM"):
            await edge.http.post(path, body, dict)


async def test_the_suffix_of_a_completion_is_the_same_without_other_files(pair: HTTPClient) -> None:
    body: dict[str, Any] = {"prompt": "The capital of", "suffix": " is Paris.", "max_tokens": 8, "temperature": 0}
    answer = await pair.post("/v1/completions", body | {"model": "edge"}, dict)
    plain = {"add_special_tokens": False}
    texts = [await pair.post("/tokenize", plain | {"prompt": body[name]}, dict) for name in ("prompt", "suffix")]
    assert answer["usage"]["prompt_tokens"] == 3 + sum(one["count"] for one in texts)
    assert (await pair.post("/v1/completions", body | {"model": "lossless"}, dict))["collaboration"]["lossless"]
    for wrong in ({"echo": True}, {"prompt": ["a", "b"]}):
        with pytest.raises(RequestError) as refusal:
            await pair.post("/v1/completions", body | wrong, dict)
        assert refusal.value.param == "suffix"


# Limits by lines


def lines(indent: int, text: str, seconds: float | None = None, clock: list[float] | None = None) -> tuple[str, bool]:
    ticks = iter(clock or [0.0] * 1000)
    limits = LineLimits(indent, seconds, lambda: next(ticks))
    shown = "".join(limits.take(character) for character in text)
    return shown, limits.ended


def test_a_text_ends_at_a_line_that_is_indented_too_little() -> None:
    assert lines(4, "a:\n    b\n  c\n    d") == ("a:\n    b\n  ", True)
    assert lines(0, "a:\n    b\n\nc") == ("a:\n    b\n\nc", False)
    whole = LineLimits(4, None)
    assert (whole.take("a\n  b"), whole.take("more")) == ("a\n  ", "")


def test_a_text_ends_with_the_first_line_break_after_its_time() -> None:
    assert lines(0, "a\nb\nc", 1, [0.0, 0.5, 1.5]) == ("a\nb\n", True)
