"""Thoughts over HTTP: how many tokens they have, and where a budget ends them, in every mode, streamed and not."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from benchmarks import fake_cloud
from benchmarks.fake_cloud import FakeCloud
from benchmarks.toy_model import END, verify
from common.errors import OverloadedError, RequestError
from common.http.client import HTTPClient
from common.http.error_replies import Busy
from common.types import Provenance
from edge.api.answers import StartedAnswer, start
from tests.support.edge_in_process import edge_of
from tests.support.gguf_copies import copy

TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}<|assistant|>{# <think></think> #}"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "What is AI?"}], "temperature": 0, "max_tokens": 60}
MODES = {
    "cloud only": {"mode": "cloud_only"},
    "rounds": {"use_confidence_check": False, "way": "rounds"},
    "continuous": {"use_confidence_check": False, "way": "continuous"},
}
THOUGHT, SAID = "One two three four five six seven.", "It is a machine."


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def thinker(fake: FakeCloud, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HTTPClient]:
    """An edge whose chat template knows thoughts, with a cloud."""
    file = copy(tmp_path_factory.mktemp("thoughts") / "thinks.gguf", **{"tokenizer.chat_template": TEMPLATE})
    async with edge_of(fake.url, f"edge.model.path={file}") as made:
        yield made


async def ids_of(edge: HTTPClient, text: str) -> list[int]:
    return list((await edge.post("/tokenize", {"prompt": text, "add_special_tokens": False}, dict))["tokens"])


Write = Callable[[], Any]


@pytest.fixture
def writes(thinker: HTTPClient, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Makes the cloud's model think, and say the same whenever a thought has ended; gives the tokens of its thought."""

    async def write() -> list[int]:
        begin, end = await ids_of(thinker, "<think>"), await ids_of(thinker, "</think>")
        thought, said = await ids_of(thinker, THOUGHT), [*await ids_of(thinker, SAID), END]
        begins = list[int]()

        def model(token_ids: Sequence[int]) -> int:
            begins.append(len(token_ids))
            answer = list(token_ids[min(begins) :])
            for at in range(len(answer), len(end) - 1, -1):
                if answer[at - len(end) : at] == end:
                    return int(said[len(answer) - at])
            return int([*begin, *thought, *end][len(answer)])

        monkeypatch.setattr(fake_cloud, "cloud_model", model)
        monkeypatch.setattr(fake_cloud, "verify", partial(verify, model=model))
        return thought

    return write


@pytest.mark.parametrize("fields", MODES.values(), ids=MODES)
async def test_usage_counts_the_tokens_of_thoughts(thinker: HTTPClient, writes: Write, fields: dict[str, Any]) -> None:
    thought = await writes()
    answer = await thinker.post("/v1/chat/completions", ASK | fields, dict)
    message, usage = answer["choices"][0]["message"], answer["usage"]
    assert (message["reasoning_content"], message["content"]) == (THOUGHT, SAID)
    counted = usage["completion_tokens_details"]["reasoning_tokens"]
    assert abs(counted - len(thought)) <= len(await ids_of(thinker, "</think>"))  # of which a part may be held back
    assert counted < usage["completion_tokens"]


@pytest.mark.parametrize("fields", MODES.values(), ids=MODES)
@pytest.mark.parametrize("budget", [0, 1, 5, 1000, -1])
async def test_a_thought_ends_with_its_budget_and_the_answer_goes_on(
    thinker: HTTPClient, writes: Write, fields: dict[str, Any], budget: int
) -> None:
    thought = await writes()
    whole = 0 <= budget < len(thought)
    asked = ASK | fields | {"thinking_token_budget": budget}
    answer = await thinker.post("/v1/chat/completions", asked, dict)
    message, usage = answer["choices"][0]["message"], answer["usage"]
    thoughts = message.get("reasoning_content", "")
    assert message["content"] == SAID
    assert thoughts == THOUGHT if not whole else THOUGHT.startswith(thoughts) and len(thoughts) < len(THOUGHT)
    if whole:
        assert usage["completion_tokens_details"]["reasoning_tokens"] <= max(budget, 1)
    assert answer["choices"][0]["finish_reason"] == "stop" and answer["collaboration"]["lossless"]
    assert usage["prompt_tokens"] == len(await ids_of(thinker, "<|user|>What is AI?<|assistant|>"))
    streamed = [event async for event in thinker.events("/v1/chat/completions", asked | {"stream": True})]
    joined = b"".join(streamed).decode()
    assert joined.count('"finish_reason":"stop"') == 1


async def test_an_answer_without_room_after_its_thought_ends_by_its_length(thinker: HTTPClient, writes: Write) -> None:
    await writes()
    asked = ASK | {"mode": "cloud_only", "thinking_token_budget": 3, "max_tokens": 5}
    choice = (await thinker.post("/v1/chat/completions", asked, dict))["choices"][0]
    assert choice["finish_reason"] == "length" and not choice["message"]["content"]


async def test_a_thought_that_leaves_no_room_after_it_ends_by_the_answers_length(
    thinker: HTTPClient, writes: Write
) -> None:
    await writes()
    begin, end = await ids_of(thinker, "<think>"), await ids_of(thinker, "</think>")
    for more in range(len(end) + 1):  # the budget is spent, and what is left is no more than the end of the thought
        asked = ASK | {"mode": "cloud_only", "thinking_token_budget": 3, "max_tokens": len(begin) + 3 + more}
        said = (await thinker.post("/v1/chat/completions", asked, dict))["choices"][0]
        assert said["finish_reason"] == "length" and not said["message"]["content"], more


async def test_an_answer_that_was_cut_by_its_budget_has_its_cost(
    fake: FakeCloud, thinker: HTTPClient, writes: Write, tmp_path: Path
) -> None:
    await writes()
    file = copy(tmp_path / "thinks.gguf", **{"tokenizer.chat_template": TEMPLATE})
    async with edge_of(fake.url, f"edge.model.path={file}", "communication.prices.completion=10") as priced:
        asked = ASK | {"mode": "cloud_only", "thinking_token_budget": 5}
        report = (await priced.post("/v1/chat/completions", asked, dict))["collaboration"]
        assert report["cost"] == pytest.approx(report["tokens"]["cloud"] * 1e-5)
        assert (await priced.get("/stats", dict))["costs"]["today"] == {"": report["cost"]}


async def test_a_thought_after_which_nothing_could_start_is_counted_once(
    thinker: HTTPClient, writes: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    await writes()
    started = list[StartedAnswer]()

    @asynccontextmanager
    async def start_once(*given: Any) -> AsyncIterator[StartedAnswer]:
        if started:
            raise OverloadedError("no place for the rest")
        async with start(*given) as answer:
            started.append(answer)
            yield answer

    async def counted() -> float:
        async with thinker.session().get(thinker.base_url + "/metrics") as metrics:
            lines = (await metrics.text()).splitlines()
        (line,) = [one for one in lines if one.startswith('edgecloud_answer_tokens_total{provenance="cloud"}')]
        return float(line.split()[-1])

    monkeypatch.setattr("edge.api.choice.start", start_once)
    before = await counted()
    with pytest.raises(Busy, match="no place for the rest"):
        await thinker.post("/v1/chat/completions", ASK | {"mode": "cloud_only", "thinking_token_budget": 5}, dict)
    thought = started[0].running.answer.report.tokens[Provenance.CLOUD]
    assert await counted() - before == thought > 0


async def test_a_wrong_budget_is_named(thinker: HTTPClient) -> None:
    with pytest.raises(RequestError) as refusal:
        await thinker.post("/v1/chat/completions", ASK | {"thinking_token_budget": -2}, dict)
    assert refusal.value.param == "thinking_token_budget"


NO_PRODUCT = {"product_threshold": 0.0, "collaboration": {"tokens": True}}


@pytest.mark.parametrize(
    ("fields", "thought_by", "last_by"),
    [
        ({"confidence_threshold": 0.0, "confidence_threshold_reasoning": 1.0}, "cloud", "edge"),
        ({"confidence_threshold": 1.0, "confidence_threshold_reasoning": 0.0}, "edge", "edge"),
        ({"confidence_threshold": 1.0}, "cloud", "cloud"),
    ],
    ids=["doubted", "trusted", "as all tokens"],
)
async def test_thoughts_have_a_gate_of_their_own(
    fake: FakeCloud, thinker: HTTPClient, writes: Write, tmp_path: Path,
    fields: dict[str, Any], thought_by: str, last_by: str,
) -> None:  # fmt: skip
    """The edge's model ends no thought, the cloud's does; the prompt has begun one."""
    await writes()
    template = TEMPLATE.replace("{#", "<think>{#")
    file = copy(tmp_path / "thinks.gguf", **{"tokenizer.chat_template": template})
    async with edge_of(fake.url, f"edge.model.path={file}") as edge:
        answer = await edge.post("/v1/chat/completions", ASK | NO_PRODUCT | fields, dict)
    choice = answer["choices"][0]
    sources = ["edge" if token["source"] == "edge" else "cloud" for token in choice["collaboration"]["tokens"]]
    thoughts = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert {*sources[:thoughts]} == {thought_by} and thoughts > 0
    assert sources[-1] == last_by
