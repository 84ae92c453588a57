"""What the edge's API refuses: with 400 and the name of the field; the next request is answered."""

from typing import Any

import pytest

from tests.conftest import Edge
from tests.support.edge_calls import CHAT, PLAIN, completion, refused, texts


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("completions", {"best_of": 3}, "best_of"),
        ("completions", {"suffix": "."}, "model"),
        ("completions", {"logit_bias": {"word": 1}}, "logit_bias"),
        ("completions", {"max_tokens": 0}, "max_tokens"),
        ("completions", {"logprobs": 21}, "logprobs"),
        ("completions", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": ["a", 1]}, "prompt"),
        ("completions", {"prompt": [-1]}, "prompt"),
        ("completions", {"prompt": [2**31]}, "prompt"),
        ("completions", {"prompt": [[1], []]}, "prompt"),
        ("completions", {"prompt": "x" * 3_000_000}, "prompt"),
        ("completions", {"prompt": "word " * 3000}, "prompt"),
        ("completions", {"prompt": ["a"] * 300}, "prompt"),
        ("completions", {"n": 2**31}, "n"),
        ("completions", {"n": 0}, "n"),
        ("completions", {"seed": 2**64}, "seed"),
        ("completions", {"top_k": 2**31}, "top_k"),
        ("completions", {"temperature": -1}, "temperature"),
        ("completions", {"temperature": "hot"}, "temperature"),
        ("completions", {"top_p": 0}, "top_p"),
        ("completions", {"min_p": 2}, "min_p"),
        ("completions", {"presence_penalty": 3}, "presence_penalty"),
        ("completions", {"repetition_penalty": 0}, "repetition_penalty"),
        ("completions", {"stop": ["a"] * 17}, "stop"),
        ("completions", {"stop": ""}, "stop"),
        ("completions", {"stop": "x" * 1001}, "stop"),
        ("completions", {"mode": "nonsense"}, "mode"),
        ("completions", {"service_tier": "nonsense"}, "service_tier"),
        ("chat/completions", {"reasoning_effort": "nonsense"}, "reasoning_effort"),
        ("chat/completions", {"messages": [{"role": "nonsense", "content": "x"}]}, "messages[0].role"),
        ("completions", {"unheard_of": 1}, None),
        ("completions", {"ignore_eos": True, "response_format": {"type": "json_object"}}, "ignore_eos"),
        ("completions", {"response_format": {"type": "json_schema"}}, "response_format"),
        (
            "completions",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}}},
            "response_format",
        ),
        ("chat/completions", {"top_logprobs": 2}, "top_logprobs"),
        ("chat/completions", {"tools": [{}]}, "tools[0]"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": " "}]}, "messages"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].image_url",
        ),
        ("chat/completions", {"messages": [{"role": "user", "content": "word " * 3000}]}, "messages"),
        ("chat/completions", {"max_tokens": 0}, "max_tokens"),
    ],
)
async def test_an_invalid_field_is_refused_by_name(edge: Edge, path: str, fields: Any, param: str | None) -> None:
    base = CHAT if "chat" in path else PLAIN
    for stream in (False, True):
        body = base | {"stream": True} | fields if stream else base | fields
        if stream and param == "stream_options":
            continue
        status, error = await refused(edge, f"/v1/{path}", body)
        assert (status, error["param"]) == (400, param)
        assert error["type"] == "invalid_request_error"
    assert texts(await completion(edge, max_tokens=1))


@pytest.mark.parametrize("mode", ["collaborative", "cloud_only"])
@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("completions", {"min_p": 0.1}, "min_p"),
        ("chat/completions", {"min_p": 0.1}, "min_p"),
    ],
)
async def test_what_the_cloud_does_not_support_is_refused_with_the_mode_that_does(
    edge: Edge, mode: str, path: str, fields: dict[str, Any], param: str
) -> None:
    base = (CHAT if "chat" in path else PLAIN) | fields
    status, error = await refused(edge, f"/v1/{path}", base | {"mode": mode, "use_draft_verify": True})
    assert (status, error["param"]) == (400, param)
    assert "edge_only" in error["message"]
    await edge.http.post(f"/v1/{path}", base | {"mode": "edge_only", "use_draft_verify": True}, dict)
