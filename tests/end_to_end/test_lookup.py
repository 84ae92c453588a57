"""Look-up drafts and predictions on a real pair: the same answers in fewer steps, and counted everywhere."""

from collections import Counter
from typing import Any

import openai
import pytest

from common.errors import RequestError
from tests.conftest import Servers
from tests.edge.api.test_lost_clouds import metrics

QUESTION = [{"role": "user", "content": "Explain quantum computing"}]
LOSSLESS: dict[str, dict[str, Any]] = {
    "rounds": {"use_confidence_check": False, "way": "rounds"},
    "continuous": {"use_confidence_check": False, "way": "continuous"},
}
GATED: dict[str, Any] = {"confidence_threshold": 1.0, "product_threshold": 1.0}
WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "edge only": {"mode": "edge_only"},
    "cloud only": {"mode": "cloud_only"},
    "without F2": {"use_draft_verify": False, **GATED},
    "private": {"privacy": "edge_only"},
    "switched off": {"use_confidence_check": False, "lookup": False},
}


async def chat(servers: Servers, **fields: Any) -> dict[str, Any]:
    body = {"messages": QUESTION, "temperature": 0, "max_tokens": 64, "collaboration": {"tokens": True}}
    answer: dict[str, Any] = await servers.edge.post("/v1/chat/completions", body | fields, dict)
    return answer


def predicted(text: str) -> dict[str, Any]:
    return {"prediction": {"type": "content", "content": [{"type": "text", "text": text}]}}


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize("fields", [*LOSSLESS.values(), GATED], ids=[*LOSSLESS, "gated"])
async def test_a_right_prediction_saves_steps_and_is_counted_everywhere(
    servers: Servers, fields: dict[str, Any]
) -> None:
    alone = await chat(servers, mode="cloud_only")
    text, before = text_of(alone), await metrics_of(servers)
    answer = await chat(servers, **fields, **predicted(text))
    report, used, after = answer["collaboration"], answer["usage"], await metrics_of(servers)
    assert text_of(answer) == text
    assert report["cloud_steps"] < alone["collaboration"]["cloud_steps"] / 4
    details = used["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] == report["predicted"] > used["completion_tokens"] / 2
    assert details["rejected_prediction_tokens"] == 0
    tokens = answer["choices"][0]["collaboration"]["tokens"]
    drafters = Counter(token["drafter"] for token in tokens if token["source"] == "accepted")
    assert drafters == {drafter: count for drafter, count in report["drafters"].items() if count}
    assert drafters["prediction"] > 0 or fields is GATED, "there the demo's own draft is as good"
    for drafter, count in report["drafters"].items():
        key = f'edgecloud_drafter_tokens_total{{drafter="{drafter}"}}'
        assert after[key] - before[key] == count
    assert all(token["drafter"] is None for token in tokens if token["source"] != "accepted")


@pytest.mark.parametrize("fields", LOSSLESS.values(), ids=LOSSLESS)
async def test_a_wrong_prediction_costs_no_exactness_and_its_rejected_tokens_are_counted(
    servers: Servers, fields: dict[str, Any]
) -> None:
    text = text_of(await chat(servers, mode="cloud_only"))
    half = text[: len(text) // 2] + " and now for something completely different, said the dog to the moon."
    answer = await chat(servers, **fields, **predicted(half))
    details = answer["usage"]["completion_tokens_details"]
    assert text_of(answer) == text
    assert answer["collaboration"]["lossless"]
    assert details["accepted_prediction_tokens"] > 0 and details["rejected_prediction_tokens"] > 0


@pytest.mark.parametrize("fields", WITHOUT_EFFECT.values(), ids=WITHOUT_EFFECT)
async def test_where_no_draft_is_verified_a_prediction_has_no_effect(servers: Servers, fields: dict[str, Any]) -> None:
    plain = await chat(servers, **fields)
    answer = await chat(servers, **fields, **predicted(text_of(plain)))
    assert text_of(answer) == text_of(plain)
    assert set(answer["usage"]["completion_tokens_details"].values()) == {0}
    assert plain["usage"]["completion_tokens_details"] == answer["usage"]["completion_tokens_details"]
    assert answer["collaboration"]["drafters"]["lookup"] == answer["collaboration"]["drafters"]["prediction"] == 0


async def test_a_seeded_answer_with_a_prediction_is_reproducible(servers: Servers) -> None:
    fields = {"temperature": 1.5, "use_confidence_check": False, **predicted("Quantum computing is a kind of magic.")}
    texts = [text_of(await chat(servers, seed=seed, **fields)) for seed in (1, 2, 1, 2)]
    assert texts[:2] == texts[2:]
    assert texts[0] != texts[1]


async def test_openais_client_sends_a_prediction_and_reads_its_counts(servers: Servers) -> None:
    async with openai.AsyncOpenAI(base_url=servers.edge_url + "/v1", api_key="none") as client:
        answer = await client.chat.completions.create(
            model="demo-edge",
            messages=[{"role": "user", "content": "Explain quantum computing"}],
            prediction={"type": "content", "content": "Quantum computing"},
            temperature=0,
            extra_body={"use_confidence_check": False},
        )
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.accepted_prediction_tokens is not None


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        ({"type": "text", "content": "a"}, "Invalid enum value"),
        ({"type": "content"}, "content"),
        ({"type": "content", "content": [{"type": "image_url"}]}, "not supported, only text"),
    ],
)
async def test_a_prediction_that_is_no_text_is_refused(servers: Servers, prediction: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        await chat(servers, use_confidence_check=False, prediction=prediction)


async def metrics_of(servers: Servers) -> dict[str, float]:
    return await metrics(servers.edge)
