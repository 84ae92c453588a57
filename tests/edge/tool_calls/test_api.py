"""Tools through the edge's chat API, on a real server without a cloud: forced calls, streams, histories, refusals."""

import io
import json
from typing import Any

import aiohttp
import jsonschema
import pytest

from common.errors import RequestError
from common.grammar import call_grammars
from tests.conftest import Edge
from tests.support.edge_calls import CHAT, chat, refused, streamed

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "place": {"$ref": "#/$defs/Place"}},
            "required": ["city", "place"],
            "additionalProperties": False,
            "$defs": {"Place": {"enum": ["inside", "outside"]}},
        },
    },
}
CLOCK: dict[str, Any] = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
}
TOOLS = {"tools": [WEATHER, CLOCK], "max_tokens": 120}
NAMED = {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}
REQUIRED = {"tool_choice": "required", "parallel_tool_calls": False}


def calls_of(answer: dict[str, Any]) -> list[tuple[str, Any]]:
    message = answer["choices"][0]["message"]
    return [(one["function"]["name"], json.loads(one["function"]["arguments"])) for one in message["tool_calls"]]


@pytest.mark.parametrize("fields", [NAMED, REQUIRED], ids=["named", "required"])
@pytest.mark.parametrize("seed", range(3))
async def test_a_forced_call_matches_its_tool(edge: Edge, fields: dict[str, Any], seed: int) -> None:
    answer = await chat(edge, **TOOLS, **fields, temperature=1, seed=seed)
    choice = answer["choices"][0]
    ((name, arguments),) = calls_of(answer)
    tool = next(one for one in TOOLS["tools"] if one["function"]["name"] == name)  # type: ignore[attr-defined]
    jsonschema.validate(arguments, tool["function"]["parameters"])
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    if fields is NAMED:
        assert name == "get_weather"


@pytest.mark.parametrize("fields", [NAMED, REQUIRED], ids=["named", "required"])
async def test_a_streamed_call_joined_is_the_whole(edge: Edge, fields: dict[str, Any]) -> None:
    whole = await chat(edge, **TOOLS, **fields)
    chunks = await streamed(edge, "/v1/chat/completions", **TOOLS, **fields)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    calls = [call for one in deltas for call in one.get("tool_calls", [])]
    assert [call["index"] for call in calls] == list(range(len(calls)))
    assert [call["function"] for call in calls] == [
        call["function"] for call in whole["choices"][0]["message"]["tool_calls"]
    ]
    assert deltas[0]["role"] == "assistant"
    assert "".join(one.get("content", "") for one in deltas) == ""
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_forced_call_that_is_cut_off_is_text(edge: Edge) -> None:
    answer = await chat(edge, **(TOOLS | {"max_tokens": 3}), **NAMED)
    message = answer["choices"][0]["message"]
    assert "tool_calls" not in message
    assert message["content"].startswith("<")
    assert answer["choices"][0]["finish_reason"] == "length"


PLACE = {"type": "object", "properties": {"kind": {"enum": ["town", "land"]}}, "required": ["kind"]}
FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE}}}


async def test_beside_tools_a_structured_answer_is_either_a_call_or_what_its_schema_says(edge: Edge) -> None:
    kinds = set[str]()
    for seed in range(12):
        answer = await chat(edge, **TOOLS, **FORMAT, temperature=2, seed=seed)
        message = answer["choices"][0]["message"]
        if answer["choices"][0]["finish_reason"] == "length":
            continue
        if "tool_calls" in message:
            assert {name for name, _ in calls_of(answer)} <= {"get_weather", "clock"}
        else:
            jsonschema.validate(json.loads(message["content"]), PLACE)
        kinds.add("call" if "tool_calls" in message else "text")
    assert kinds == {"call", "text"}


async def test_a_schema_that_cannot_be_held_is_refused_where_a_call_is_forced(edge: Edge) -> None:
    wrong = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "not": {}}}}
    status, error = await refused(edge, "/v1/chat/completions", CHAT | {"tools": [wrong], "tool_choice": "required"})
    assert (status, error["param"]) == (400, "tools")
    assert (await chat(edge, tools=[wrong], max_tokens=1))["choices"]


@pytest.mark.parametrize("depth", [100, 200, 450])
def test_schemas_that_are_nested_too_deeply_or_too_large_make_no_grammar(depth: int) -> None:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    for parameters in (schema, {"enum": ["x" * 600] * 2000}):
        with pytest.raises(RequestError) as refusal:
            call_grammars.grammar({"f": parameters}, True, None)
        assert refusal.value.param in ("tools", "response_format")


@pytest.mark.parametrize("fields", [{}, {"tool_choice": "required"}], ids=["auto", "required"])
async def test_schemas_of_any_depth_and_size_are_answered_or_refused(edge: Edge, fields: dict[str, Any]) -> None:
    function = {"name": "f", "parameters": "SCHEMA"}
    bodies = {
        "/v1/chat/completions": {**CHAT, "tools": [{"type": "function", "function": function}], "max_tokens": 1},
        "/v1/responses": {"input": "x", "tools": [{"type": "function", **function}], "max_output_tokens": 1},
    }
    for depth in (50, 150, 200, 300, 450, 600, 900):
        deep = '{"properties":{"a":' * depth + "{}" + "}}" * depth
        for schema in (deep, json.dumps({"enum": ["x" * depth] * 2000})):
            for path, body in bodies.items():
                data = io.BytesIO(json.dumps(body | fields).replace('"SCHEMA"', schema).encode())
                async with aiohttp.ClientSession() as session, session.post(edge.url + path, data=data) as response:
                    assert response.status in (200, 400), (path, depth)


async def test_a_call_and_its_result_are_part_of_the_next_prompt(edge: Edge) -> None:
    first = await chat(edge, **TOOLS, **NAMED)
    called = first["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": "22 degrees"}
    messages = [*CHAT["messages"], called, result]
    again = await chat(edge, messages=messages, tools=TOOLS["tools"], max_tokens=5)
    shorter = await chat(edge, messages=CHAT["messages"], tools=TOOLS["tools"], max_tokens=5)
    assert again["usage"]["prompt_tokens"] > shorter["usage"]["prompt_tokens"]
    assert again["choices"][0]["message"]["role"] == "assistant"


async def test_tools_that_may_be_called_are_part_of_the_prompt_and_none_are_not(edge: Edge) -> None:
    async def prompt(**fields: Any) -> int:
        count: int = (await chat(edge, max_tokens=1, **fields))["usage"]["prompt_tokens"]
        return count

    plain = await prompt()
    assert await prompt(tools=[CLOCK], tool_choice="auto") > plain
    assert await prompt(tools=[CLOCK], tool_choice="none") == plain
    assert await prompt(tools=[]) == plain
    asked = {"messages": CHAT["messages"], "tools": [CLOCK]}
    assert (await edge.http.post("/tokenize", asked, dict))["count"] == await prompt(tools=[CLOCK])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function"),
        ({"tools": [CLOCK, {"type": "web_search"}]}, "tools[1].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "<f>"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "x" * 200}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [CLOCK, CLOCK]}, "tools[1].function.name"),
        ({"tools": [CLOCK] * 2000}, "tools"),
        ({"tools": "clock"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": "clock"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "clock"}}, "tool_choice.type"),
        ({"tools": [CLOCK], "tool_choice": 5}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": "required", "mode": "split"}, "tool_choice"),
        ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "1"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls[0]"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"messages": [*CHAT["messages"], {"role": "assistant", "content": "x " * 9000}]}, "messages"),
    ],
)
async def test_a_wrong_tool_choice_or_history_is_refused_by_name(edge: Edge, fields: Any, param: str) -> None:
    for stream in (False, True):
        status, error = await refused(edge, "/v1/chat/completions", CHAT | {"stream": stream} | fields)
        assert (status, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert (await chat(edge, max_tokens=1))["choices"]
