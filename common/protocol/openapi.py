"""Writes a server's OpenAPI document from its routes and the structs of their bodies."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from common.protocol import codec
from common.types import ErrorObject

Schema = dict[str, Any]
SCHEMA_REF = "#/components/schemas/{name}"
"""Where a document keeps the schema of each type."""
HEALTH = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
ANY_OBJECT: Schema = {"type": "object"}


class DocumentedError(msgspec.Struct):
    """The body of every refusal and failure."""

    error: ErrorObject


@dataclass(frozen=True)
class Operation:
    """One route: what it takes and gives. A body is a struct, or a JSON schema; None: it has none."""

    method: str
    path: str
    summary: str
    request: Any = None
    response: Any = None
    event: Any = None
    """Of a stream of server-sent events, in place of the response if the request asks for `stream`."""
    content: str = codec.JSON
    """Type of the response; a JSON response is MessagePack to a client that accepts that."""
    upload: str = codec.JSON
    """Type of the request's body."""
    frames: Any = None
    """Of a WebSocket: a union of structs that the client and the server send."""

    @property
    def key(self) -> tuple[str, str]:
        return self.method.upper(), self.path


COMMON_OPERATIONS = (
    Operation("get", "/health", "Whether the server is alive", response=HEALTH),
    Operation("get", "/ready", "Whether the model answers; 503 until then", response=HEALTH),
    Operation("get", "/metrics", "Metrics for Prometheus", content="text/plain"),
    Operation("get", "/stats", "Counters since the start", response=ANY_OBJECT),
    Operation("get", "/calls/{id}", "Whether the server works on the call with this X-Call-Id", response=HEALTH),
    Operation("get", "/openapi.json", "This document", response=ANY_OBJECT),
)
"""The routes that both servers have."""


def document(
    title: str, operations: Iterable[Operation], keys: bool, schemas: Mapping[str, Schema] | None = None
) -> Schema:
    """The OpenAPI 3.1 document. `keys`: an API key is needed. `schemas`: components that bodies refer to by name."""
    listed = [*COMMON_OPERATIONS, *operations]
    structs = {part for one in listed for part in (one.request, one.response, one.event, one.frames) if _is_type(part)}
    of_structs, components = msgspec.json.schema_components([*structs, DocumentedError], ref_template=SCHEMA_REF)
    known = dict(zip([*structs, DocumentedError], of_structs, strict=True))

    def schema(body: Any) -> Schema:
        return known[body] if _is_type(body) else body

    paths: dict[str, Schema] = {}
    for one in listed:
        paths.setdefault(one.path, {})[one.method] = _operation(one, schema)
    security: list[Schema] = [{"key": []}] if keys else []
    schemes = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if keys else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": codec.PROTOCOL},
        "paths": paths,
        "components": {"schemas": {**components, **(schemas or {})}, **schemes},
        "security": security,
    }


def _is_type(body: Any) -> bool:
    return body is not None and not isinstance(body, dict)


def _operation(one: Operation, schema: Callable[[Any], Schema]) -> Schema:
    error = {"content": {codec.JSON: {"schema": schema(DocumentedError)}}}
    responses = {
        "200": {"description": "The reply", **({"content": _reply(one, schema)} if one.frames is None else {})},
        "4XX": {"description": "The request is refused, or there is no room for it (429)", **error},
        "5XX": {"description": "The server, or one that it needs, cannot answer now", **error},
    }
    if one.frames is not None:
        responses["101"] = {"description": "A WebSocket", "content": {codec.JSON: {"schema": schema(one.frames)}}}
        del responses["200"]
    names = re.findall(r"{(\w+)}", one.path)
    written: Schema = {"summary": one.summary, "responses": responses}
    if names:
        written["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if one.request is not None:
        body = {"schema": schema(one.request)}
        written["requestBody"] = {"required": True, "content": {one.upload: body}}
    return written


def _reply(one: Operation, schema: Callable[[Any], Schema]) -> Schema:
    if one.response is None:
        return {one.content: {"schema": {"type": "string"}}}
    replies = {one.content: {"schema": schema(one.response)}}
    if one.event is not None:
        replies["text/event-stream"] = {"schema": _event({"anyOf": [schema(one.event), schema(DocumentedError)]})}
    return replies


def _event(data: Schema) -> Schema:
    """One event of a stream; before OpenAPI 3.2 that is what the schema of a stream describes."""
    written: Schema = {"type": "string", "contentMediaType": codec.JSON, "contentSchema": data}
    properties: Schema = {"event": {"type": "string"}, "data": {"anyOf": [{"const": "[DONE]"}, written]}}
    return {"type": "object", "properties": properties, "required": ["data"]}
