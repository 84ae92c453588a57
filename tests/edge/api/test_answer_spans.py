"""The spans of an edge's answers, with a cloud without a model: each round; prompts only where that is asked for."""

import json
from typing import Any

import pytest

from benchmarks.fake_cloud import FakeCloud
from common.tracing.context import current_traceparent
from common.tracing.export import exported
from tests.support.edge_in_process import edge_of
from tests.support.otlp_receiver import ReceivedSpan, otlp_receiver

CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is a neural network?"}],
    "temperature": 0,
    "max_tokens": 12,
}


async def answered(fake: FakeCloud, **fields: Any) -> tuple[dict[str, Any], list[ReceivedSpan]]:
    """An edge's answer, and all spans of it."""
    with otlp_receiver() as receiver, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        with exported("edge", enabled=True):
            async with edge_of(fake.url) as edge:
                answer: dict[str, Any] = await edge.post("/v1/chat/completions", ASK | fields, dict)
    assert current_traceparent.get() == ""
    (trace,) = {one.trace for one in receiver.spans if one.name == "POST /v1/chat/completions"}
    return answer, receiver.of(trace)


async def test_each_round_of_a_lossless_answer_drafts_verifies_and_commits(fake: FakeCloud) -> None:
    answer, spans = await answered(fake, use_confidence_check=False, way="rounds")
    report, names = answer["collaboration"], [one.name for one in spans]
    assert names.count("round") == names.count("commit") == names.count("draft") == report["rounds"] > 0
    assert len([one for one in spans if (one.name, one.kind) == ("verify", "client")]) == report["rounds"]
    by_id = {one.id: one for one in spans}
    assert {by_id[one.parent].name for one in spans if one.name in ("draft", "verify", "commit")} == {"round"}
    (said,) = [one for one in spans if one.name.startswith("chat ")]
    assert {one.parent for one in spans if one.name == "round"} == {said.id}
    assert said.attributes["gen_ai.response.finish_reasons"] == [answer["choices"][0]["finish_reason"]]
    assert {name: said.attributes[f"edgecloud.{name}"] for name in ("rounds", "drafted", "accepted", "way")} == {
        name: report[name] for name in ("rounds", "drafted", "accepted", "way")
    }


async def test_a_streamed_answer_has_one_stream_with_the_drafts_for_it(fake: FakeCloud) -> None:
    answer, spans = await answered(fake, use_confidence_check=False, way="continuous")
    (sent,) = [one for one in spans if (one.name, one.kind) == ("stream", "client")]
    assert {one.parent for one in spans if one.name == "draft"} <= {sent.id}
    assert sent.attributes["edgecloud.steps"] == answer["collaboration"]["cloud_steps"] > 0


async def test_an_answer_of_the_edge_alone_has_no_rounds(fake: FakeCloud) -> None:
    answer, spans = await answered(fake, mode="edge_only", n=2)
    assert sorted(one.name.partition(" ")[0] for one in spans) == ["POST", "chat", "chat", "template"]
    tokens = [one.attributes["gen_ai.usage.output_tokens"] for one in spans if one.name.startswith("chat ")]
    assert sum(tokens) == answer["usage"]["completion_tokens"]


@pytest.mark.parametrize("asked", [False, True])
async def test_prompt_and_answer_are_recorded_only_where_that_is_asked_for(
    fake: FakeCloud, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    monkeypatch.setenv(CONTENT, str(asked).lower())
    answer, spans = await answered(fake, mode="edge_only")
    text = answer["choices"][0]["message"]["content"]
    assert text and (ASK["messages"][0]["content"] in repr(spans)) is asked
    if asked:
        (said,) = [one for one in spans if one.name.startswith("chat ")]
        (message,) = json.loads(said.attributes["gen_ai.output.messages"])
        assert message == {"role": "assistant", "parts": [{"type": "text", "content": text}]}


async def test_a_degraded_answer_says_that_it_is_and_no_word_of_the_clouds_error(
    fake: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url, degraded in ((fake.url, False), ("http://127.0.0.1:1", True)):
        monkeypatch.setattr(fake, "url", url)
        answer, spans = await answered(fake, use_confidence_check=False)
        (said,) = [one for one in spans if one.name.startswith("chat ")]
        assert (answer["collaboration"]["degraded"] is not None) is degraded
        assert said.attributes["edgecloud.degraded"] is degraded
