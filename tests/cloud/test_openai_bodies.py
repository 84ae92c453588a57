"""Bodies of the cloud's /v1 routes with fields of wrong types: each is a 400 that names the field, none is a 500."""

import io
import json
import logging
from contextlib import AbstractAsyncContextManager
from typing import Any, get_args

import aiohttp
import pytest
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest

from cloud.engine.engine import shorten_lines
from common.errors import LONGEST_TEXT, RequestError
from tests.cloud.toy_engine import ToyEngine, toy_cloud

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "What is AI?"}]}
MESSAGES: dict[str, Any] = {"model": "toy", **CHAT}
TEXT: dict[str, Any] = {"prompt": "What is AI?"}
WRONG: list[Any] = [None, 0, -1, True, 1.5, "", "x", [], {}, [0], ["x"], [[]], [{}], [None], {"x": 1}, {"json": 0}]
WRONG += [10**30, {"type": "x"}, {"type": "json_schema"}, {"type": "structural_tag"}]
ROUTES: list[tuple[str, Any, dict[str, Any]]] = [
    ("/v1/chat/completions", ChatCompletionRequest, CHAT),
    ("/v1/completions", CompletionRequest, TEXT),
    *(("/tokenize", model, base) for model in get_args(TokenizeRequest) for base in (CHAT, TEXT)),
    ("/v1/responses", ResponsesRequest, {"input": "What is AI?"}),
    ("/v1/messages", AnthropicMessagesRequest, MESSAGES | {"max_tokens": 5}),
    ("/v1/messages/count_tokens", AnthropicCountTokensRequest, MESSAGES),
    ("/detokenize", DetokenizeRequest, {"tokens": [5]}),
]


TAG = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": {"type": "boolean"}}}


class BodyTaker:
    """In place of vLLM's serving objects: takes what has passed the checks."""

    def __getattr__(self, name: str) -> Any:
        async def take(*arguments: object) -> Any:
            raise RequestError("the body was taken")

        return self if name.startswith(("openai", "anthropic", "serving")) else take


def checking_cloud() -> AbstractAsyncContextManager[aiohttp.ClientSession]:
    engine = ToyEngine()
    engine.serving = BodyTaker()
    return toy_cloud(engine)


@pytest.mark.parametrize(("path", "model", "base"), ROUTES)
async def test_a_field_of_a_wrong_type_is_a_400_whatever_the_field(path: str, model: Any, base: dict[str, Any]) -> None:
    async with checking_cloud() as http:
        for field in (*model.model_fields, "unheard_of"):
            for value in WRONG:
                async with http.post(path, json={**base, field: value}) as response:
                    answer = await response.json()
                    assert response.status == 400, (field, value, answer)


@pytest.mark.parametrize("value", [None, 0, 5, True, 1.5])
async def test_messages_that_are_no_list_are_named(value: Any) -> None:
    async with checking_cloud() as http, http.post("/v1/chat/completions", json={"messages": value}) as response:
        error = (await response.json())["error"]
        assert (response.status, error["param"], error["type"]) == (400, "messages", "invalid_request_error")


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize(
    ("message", "refused"),
    [
        ({"role": "user"}, True),
        ({"role": "user", "content": None}, True),
        ({"role": "tool", "tool_call_id": "a"}, True),
        ({"role": "assistant"}, True),
        ({"role": "assistant", "tool_calls": []}, True),
        ({"role": "assistant", "tool_calls": [CALL]}, False),
        ({"role": "assistant", "content": None, "reasoning_content": "I must look."}, False),
        ({"role": "user", "content": ""}, False),
    ],
)
async def test_only_a_message_that_a_model_may_have_written_needs_no_content(
    path: str, message: dict[str, Any], refused: bool
) -> None:
    body = {"messages": [CHAT["messages"][0], message]}
    async with checking_cloud() as http, http.post(path, json=body) as response:
        error = (await response.json())["error"]
    if refused:
        assert (response.status, error["param"]) == (400, "messages[1].content")
        assert error["message"].startswith("messages[1].content is missing")
    else:
        assert error["message"] == "the body was taken"


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("path", "body", "param", "allowed"),
    [
        ("/v1/chat/completions", {"messages": [USER], "service_tier": "foo"}, "service_tier", "flex"),
        ("/v1/chat/completions", {"messages": [USER], "reasoning_effort": "foo"}, "reasoning_effort", "minimal"),
        ("/v1/chat/completions", {"messages": [{**USER, "role": "foo"}]}, "messages[0].role", "developer"),
        ("/tokenize", {"messages": [USER, {**USER, "role": "foo"}]}, "messages[1].role", "developer"),
        ("/v1/completions", {"prompt": "x", "service_tier": "foo"}, "service_tier", "flex"),
        ("/v1/responses", {"input": "x", "service_tier": "foo"}, "service_tier", "flex"),
        ("/v1/responses", {"input": "x", "reasoning": {"effort": "foo"}}, "reasoning.effort", "minimal"),
        ("/v1/messages", {**MESSAGES, "max_tokens": 5, "service_tier": "foo"}, "service_tier", "standard_only"),
        ("/v1/messages/count_tokens", {**MESSAGES, "service_tier": "foo"}, "service_tier", "standard_only"),
    ],
)
async def test_an_unknown_word_is_refused_with_those_that_are_allowed(
    path: str, body: dict[str, Any], param: str, allowed: str
) -> None:
    async with checking_cloud() as http, http.post(path, json=body) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, param)
    assert error["message"].startswith(param) and allowed in error["message"]


@pytest.mark.parametrize("value", [0, [], "x", True])
@pytest.mark.parametrize(("path", "base"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
async def test_structured_outputs_that_are_no_object_are_named(path: str, base: dict[str, Any], value: Any) -> None:
    body = {**base, "structured_outputs": value}
    async with checking_cloud() as http, http.post(path, json=body) as response:
        error = (await response.json())["error"]
        assert response.status == 400
        assert error["param"].startswith("structured_outputs")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("structured_outputs", {"structural_tag": json.dumps(TAG)}),
        ("structured_outputs", {"json": {}, "structural_tag": json.dumps(TAG)}),
        ("response_format", TAG),
    ],
)
@pytest.mark.parametrize(("path", "base"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
async def test_structural_tags_are_refused_before_vllm_compiles_them(
    path: str, base: dict[str, Any], field: str, value: dict[str, Any]
) -> None:
    async with checking_cloud() as http, http.post(path, json={**base, field: value}) as response:
        error = (await response.json())["error"]
        assert (response.status, error["param"]) == (400, field)
        assert error["message"] == "structural tags are not supported"


class QuotingTaker:
    """Fails as vLLM's converters do, with words of the body."""

    def __getattr__(self, name: str) -> Any:
        async def take(*arguments: object) -> Any:
            raise KeyError("What is AI?")

        return self if name.startswith(("openai", "anthropic", "serving")) else take


async def test_a_body_that_vllm_cannot_read_is_not_quoted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    engine = ToyEngine()
    engine.serving = QuotingTaker()
    async with toy_cloud(engine) as http, http.post("/v1/chat/completions", json=CHAT) as response:
        assert (response.status, "cannot read" in await response.text()) == (400, True)
    (said,) = [one.getMessage() for one in caplog.records if one.name == "cloud.routes.serving"]
    assert "could not read a part of the body: KeyError" in said and "in take" in said
    assert CHAT["messages"][0]["content"] not in caplog.text.replace('raise KeyError("What is AI?")', "")


@pytest.mark.parametrize(("path", "model", "base"), ROUTES)
async def test_a_field_that_is_null_is_as_if_absent_whatever_the_field(
    path: str, model: Any, base: dict[str, Any]
) -> None:
    async with checking_cloud() as http:
        for field in {*model.model_fields, "unheard_of"} - base.keys():
            async with http.post(path, json={**base, field: None}) as response:
                assert (await response.json())["error"]["message"] == "the body was taken", field


@pytest.mark.parametrize(("path", "model", "base"), ROUTES)
async def test_a_long_name_of_a_model_reaches_neither_vllm_nor_the_reply(
    path: str, model: Any, base: dict[str, Any]
) -> None:
    async with checking_cloud() as http, http.post(path, json={**base, "model": "m" * 900_000}) as response:
        error = (await response.json())["error"]
        assert (response.status, error["param"]) == (400, "model")
        assert error["message"] == "model must have at most 256 characters"


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"prompt": 5}, "prompt", "prompt: Input should be a valid string"),
        ({"messages": 5}, "messages", "messages: Expected `array`, got `int`"),
        ({"prompt": "x", "add_special_tokens": []}, "add_special_tokens", "add_special_tokens: Input should be a"),
        ({}, "prompt", "prompt: Field required"),
    ],
)
async def test_a_wrong_field_is_named_without_the_names_of_pydantics_validators(
    body: dict[str, Any], param: str, said: str
) -> None:
    async with checking_cloud() as http, http.post("/tokenize", json=body) as response:
        error = (await response.json())["error"]
        assert (response.status, error["param"]) == (400, param)
        assert error["message"].startswith(said)


TEXT_PART = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ("/v1/chat/completions", {"messages": [USER, 5]}, "messages[1]"),
        ("/v1/chat/completions", {"messages": [{"content": "x"}]}, "messages[0]"),
        (
            "/v1/chat/completions",
            {"messages": [USER, {"role": "tool", "content": "x", "tool_call_id": 5}]},
            "messages[1].tool_call_id",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "type": "x"}]}]},
            "messages[0].tool_calls[0].type",
        ),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "tool_calls": 5}]}, "messages[0].tool_calls"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 5}]}]},
            "messages[0].content[0].image_url",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "foo"}]}]},
            "messages[0].content[0].type",
        ),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [TEXT_PART, 5]}]}, "messages[0].content[1]"),
        ("/v1/chat/completions", {"messages": [USER], "tools": [{"type": "x"}]}, "tools[0].type"),
        ("/v1/chat/completions", {"messages": [USER], "response_format": {"type": "x"}}, "response_format.type"),
        ("/tokenize", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ("/v1/responses", {"input": [{"role": "foo", "content": "x"}]}, "input[0].role"),
        ("/v1/responses", {"input": 5}, "input"),
        (
            "/v1/messages",
            {**MESSAGES, "max_tokens": 5, "messages": [{"role": "foo", "content": "x"}]},
            "messages[0].role",
        ),
        (
            "/v1/messages",
            {**MESSAGES, "max_tokens": 5, "messages": [{"role": "user", "content": [{"type": "foo"}]}]},
            "messages[0].content[0].type",
        ),
    ],
)
async def test_a_wrong_field_is_named_by_its_path_in_the_json_alone(
    path: str, body: dict[str, Any], param: str
) -> None:
    async with checking_cloud() as http, http.post(path, json=body) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, param)
    assert error["message"].startswith(f"{param}: ")


async def test_a_part_of_an_unknown_type_is_refused_with_all_types_that_are_allowed() -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "foo"}]}]}
    async with checking_cloud() as http, http.post("/v1/chat/completions", json=body) as response:
        said = (await response.json())["error"]["message"]
    assert "'text', 'image_url'" in said


def test_a_line_of_vllm_is_short_whatever_a_client_sends() -> None:
    written, vllm = io.StringIO(), logging.getLogger("vllm")
    handler = logging.StreamHandler(written)
    vllm.addHandler(handler)
    try:
        shorten_lines()
        shorten_lines()
        vllm.error("a part of type %s", "x" * 3_000_000)
    finally:
        vllm.removeHandler(handler)
    assert len(handler.filters) == 1
    assert 0 < len(written.getvalue()) < 2 * LONGEST_TEXT
