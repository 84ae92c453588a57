"""Structured answers of a real pair: what ends with `stop` is valid in every mode, and lossless is the cloud's own."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from common.cloud_client.verifier import CloudVerifier
from common.errors import GrammarError
from common.grammar.spec import GrammarKind, GrammarSpec
from common.http.client import HTTPClient
from common.types import Sampling, VerifyRequest, VerifyResponse
from experiments.harness.delay_proxy import DelayProxy
from tests.common.grammar.schemas import faults
from tests.conftest import Servers
from tests.support.edge_in_process import edge_of

MODES: dict[str, dict[str, Any]] = {
    "gated": {},
    "lossless": {"use_confidence_check": False, "way": "rounds"},
    "continuous": {"use_confidence_check": False, "way": "continuous"},
    "F2 off": {"use_draft_verify": False},
    "edge only": {"mode": "edge_only"},
    "cloud only": {"mode": "cloud_only"},
}
LOSSLESS = ("lossless", "continuous")
OTHER = "edge.model.path=models/demo-edge-other.gguf"
ANSWER = {"type": "object", "properties": {"answer": {"type": "boolean"}}, "required": ["answer"]}
ITEM = {"type": "object", "properties": {"id": {"type": "integer", "minimum": 1, "maximum": 40}}, "required": ["id"]}
SCHEMAS: dict[str, dict[str, Any]] = {
    "boolean": ANSWER,
    "enum": {"enum": ["yes", "no", "\U0001f600", 7, None]},
    "numbers": {
        "type": "array",
        "items": {"type": "integer", "minimum": 10, "maximum": 99, "multipleOf": 3},
        "minItems": 2,
        "maxItems": 3,
    },
    "pattern": {"type": "string", "pattern": r"^\d{3}-\w{2,4}$"},
    "unanchored": {"type": "string", "pattern": "b", "maxLength": 8},
    "record": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "kind": {"enum": ["a", "b"]},
            "n": {"type": "integer"},
        },
        "required": ["name", "kind"],
    },
    "nested": {
        "type": "object",
        "properties": {"items": {"type": "array", "items": ITEM, "maxItems": 2}},
        "required": ["items"],
    },
    "recursion": {
        "$defs": {"t": {"type": "object", "properties": {"in": {"$ref": "#/$defs/t"}, "v": {"type": "null"}}}},
        "$ref": "#/$defs/t",
    },
    "alternatives": {"anyOf": [{"type": "string", "maxLength": 6}, {"type": "number", "minimum": 0.5, "maximum": 2}]},
    "date": {"type": "object", "properties": {"on": {"type": "string", "format": "date"}}, "required": ["on"]},
}
QUESTIONS = ("Is fire hot?", "What is AI?", "What is the capital of France?", "What is 12 + 7?", "Name a city.")


def prompts(count: int) -> list[str]:
    return [f"{QUESTIONS[n % len(QUESTIONS)]}{' Please.' * (n // len(QUESTIONS))}" for n in range(count)]


def question(prompt: str, schema: dict[str, Any], **fields: Any) -> dict[str, Any]:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 64}
    return body | {"response_format": wanted} | fields


async def text_of(server: HTTPClient, body: dict[str, Any]) -> tuple[str, str]:
    """The text of an answer, and why it ended."""
    reply: dict[str, Any] = await server.post("/v1/chat/completions", body, dict)
    assert not reply.get("collaboration", {}).get("degraded")
    return reply["choices"][0]["message"]["content"], reply["choices"][0]["finish_reason"]


async def answers(edge: HTTPClient, schema: dict[str, Any], bodies: list[dict[str, Any]]) -> list[str]:
    """Texts of answers, four at a time; each one that ends with `stop` is valid."""
    texts: list[str] = []
    for first in range(0, len(bodies), 4):
        for text, reason in await asyncio.gather(*(text_of(edge, body) for body in bodies[first : first + 4])):
            assert reason == "length" or faults(schema, text) == [], text
            texts.append(text if reason == "stop" else text + "…")
    return texts


async def check_modes(edge: HTTPClient, schema: dict[str, Any], count: int, temperature: float) -> Counter[str]:
    """Asks `count` questions in each mode; returns how many of the answers were complete."""
    texts: dict[str, list[str]] = {}
    for mode, fields in MODES.items():
        sampled = [{"temperature": temperature, "seed": n} if temperature else {} for n in range(count)]
        bodies = [
            question(prompt, schema, **fields, **more) for prompt, more in zip(prompts(count), sampled, strict=True)
        ]
        texts[mode] = await answers(edge, schema, bodies)
    if not temperature:
        for mode in LOSSLESS:
            assert texts[mode] == texts["cloud only"]
    return Counter({mode: sum(not text.endswith("…") for text in found) for mode, found in texts.items()})


@pytest.mark.timeout(900)
async def test_forty_answers_with_one_boolean_are_valid_in_every_mode(servers: Servers) -> None:
    complete = await check_modes(servers.edge, ANSWER, 40, 0.0)
    assert complete == Counter(dict.fromkeys(MODES, 40))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_what_ends_with_stop_is_valid(servers: Servers, temperature: float) -> None:
    complete = Counter[str]()
    for schema in SCHEMAS.values():
        complete += await check_modes(servers.edge, schema, 2, temperature)
    assert min(complete.values()) > len(SCHEMAS)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", SCHEMAS)
async def test_two_hundred_answers_that_end_with_stop_are_valid(
    servers: Servers, name: str, temperature: float
) -> None:
    print(name, temperature, dict(await check_modes(servers.edge, SCHEMAS[name], 200, temperature)))


@pytest.mark.timeout(900)
async def test_schemas_hold_where_the_vocabularies_differ(servers: Servers) -> None:
    async with edge_of(servers.cloud_url, OTHER) as other:
        for schema in SCHEMAS.values():
            await check_modes(other, schema, 2, 0.0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("outputs", "right"),
    [
        ({"regex": r"\d{2} (cats|dogs)"}, lambda text: text[:2].isdigit() and text[2:] in (" cats", " dogs")),
        ({"choice": ["blue", "green \U0001f600"]}, lambda text: text in ("blue", "green \U0001f600")),
        ({"grammar": 'start: "<" /[a-c]{1,5}/ ">"'}, lambda text: text[0] + text[-1] == "<>"),
        ({"json": ANSWER}, lambda text: faults(ANSWER, text) == []),
        ({"json_object": True}, lambda text: text.startswith("{")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_vllms_structured_outputs_hold_too(
    servers: Servers, outputs: dict[str, Any], right: Callable[[str], bool], mode: str
) -> None:
    body = {"messages": [{"role": "user", "content": "What is AI?"}], "temperature": 0, "max_tokens": 48}
    text, _ = await text_of(servers.edge, body | {"structured_outputs": outputs} | MODES[mode])
    assert right(text), text


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("schema", "name"),
    [({"type": "string", "pattern": "^+[a-z]$"}, "pattern"), ({"type": 5}, "type"), ({"not": {}}, "not")],
)
async def test_a_schema_that_cannot_be_held_is_refused_by_name_in_every_mode(
    servers: Servers, schema: dict[str, Any], name: str, mode: str
) -> None:
    with pytest.raises(GrammarError, match=name):
        await text_of(servers.edge, question("What is AI?", schema, **MODES[mode]))


async def test_a_refusal_of_the_cloud_names_the_keyword_and_is_no_failure(servers: Servers) -> None:
    wrong = GrammarSpec(GrammarKind.JSON, json.dumps({"type": "string", "pattern": "^+[a-z]$"}))
    round = VerifyRequest(new_token_ids=[1, 5], max_tokens=4, sampling=Sampling(grammar=wrong, prompt_tokens=2))
    for _ in range(4):  # more than open a circuit breaker
        with pytest.raises(GrammarError, match="pattern"):
            await text_of(servers.cloud, question("What is AI?", json.loads(wrong.text)))
        with pytest.raises(GrammarError, match="pattern"):
            await servers.cloud.post("/verify", round, VerifyResponse)
        async with CloudVerifier(servers.clouds).stream([1, 5], 4, round.sampling) as stream:
            with pytest.raises(GrammarError, match="pattern"):
                await anext(aiter(stream))
    [cloud] = servers.clouds
    assert cloud.breaker.closed and cloud.outcomes["failed"] == 0


@pytest.mark.parametrize("events", [3, 8])
async def test_an_answer_whose_cloud_is_lost_in_the_middle_goes_on_under_its_schema(
    servers: Servers, events: int
) -> None:
    schema = {
        "type": "array",
        "items": {"type": "integer", "minimum": 100, "maximum": 999},
        "minItems": 6,
        "maxItems": 8,
    }
    port = int(servers.cloud_url.rpartition(":")[2])
    async with DelayProxy("127.0.0.1", port) as proxy, edge_of(proxy.url, "communication.breaker.failures=1") as edge:
        text, event, seen = "", dict[str, Any](), 0
        body = question("Numbers?", schema, stream=True, max_draft_tokens=1, **MODES["lossless"])
        async for data in edge.events("/v1/chat/completions", body):
            event, seen = json.loads(data), seen + 1
            text += "".join(choice["delta"].get("content", "") for choice in event["choices"])
            if seen == events:
                await proxy.stop()
        assert event["collaboration"]["degraded"]
        assert event["choices"][0]["finish_reason"] == "stop"
        assert faults(schema, text) == []
