"""The edge's API document has each of its routes, and the schema of what a real answer looks like."""

import json
from typing import Any

import jsonschema
import pytest

from common import config
from common.protocol import openapi
from edge.edge_server import OPERATIONS, build_app
from tests.conftest import Edge
from tests.support.edge_calls import CHAT, chat, completion, streamed


def test_the_document_has_all_routes_and_no_others() -> None:
    app = build_app(config.load(flags=["edge.console=false"], environment={}))  # the console is no part of the API
    routes = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource}
    documented = {one.key for one in (*openapi.COMMON_OPERATIONS, *OPERATIONS)}
    assert documented == {(method, path) for method, path in routes if method != "HEAD"}


def test_keys_are_documented_where_they_are_needed() -> None:
    assert openapi.document("", OPERATIONS, keys=True)["security"] == [{"key": []}]
    assert openapi.document("", OPERATIONS, keys=False)["security"] == []


async def test_answers_are_as_documented(edge: Edge) -> None:
    document: dict[str, Any] = await edge.http.get("/openapi.json", dict)
    asked = {"messages": CHAT["messages"], "max_tokens": 20}
    answers = {
        "/v1/completions": await completion(edge),
        "/v1/chat/completions": await chat(edge),
        "/v1/responses": await edge.http.post("/v1/responses", {"input": "x", "max_output_tokens": 20}, dict),
        "/v1/messages": await edge.http.post("/v1/messages", asked, dict),
        "/v1/messages/count_tokens": await edge.http.post(
            "/v1/messages/count_tokens", {"messages": asked["messages"]}, dict
        ),
    }
    for path, answer in answers.items():
        jsonschema.validate(answer, {**document, **reply_schema(document, path, "application/json")})


def reply_schema(document: dict[str, Any], path: str, kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = document["paths"][path]["post"]["responses"]["200"]["content"][kind]["schema"]
    return schema


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_events_of_a_stream_are_as_documented(edge: Edge, path: str) -> None:
    document: dict[str, Any] = await edge.http.get("/openapi.json", dict)
    event = reply_schema(document, path, "text/event-stream")
    done, data = event["properties"]["data"]["anyOf"]
    chunks = await streamed(edge, path, stream_options={"include_usage": True})
    for chunk in chunks:
        jsonschema.validate({"data": json.dumps(chunk)}, {**document, **event})
        jsonschema.validate(chunk, {**document, **data["contentSchema"]})
    assert len(chunks) > 2 and done == {"const": "[DONE]"}
    jsonschema.validate({"error": {"message": "it stops", "type": "x"}}, {**document, **data["contentSchema"]})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"choices": "none"}, {**document, **data["contentSchema"]})
