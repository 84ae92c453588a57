"""Defines the nested options of OpenAI requests: response format, streaming, collaboration."""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from common.errors import RequestError


class StreamOptions(Struct, forbid_unknown_fields=True):
    """`include_usage`: the last event of a stream reports token counts."""

    include_usage: bool = False


class CollaborationOptions(Struct, forbid_unknown_fields=True):
    """`tokens`: the response lists each token with its source and confidence."""

    tokens: bool = False


class JsonSchema(Struct):
    """A JSON schema that the answer must match."""

    name: str
    schema: dict[str, Any] = {}
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, forbid_unknown_fields=True):
    """The format of the answer: text, any JSON object, or JSON that matches a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def schema(self) -> str | None:
        """The JSON schema as text; None for plain text."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return '{"type":"object"}'
        if self.json_schema is None:
            raise RequestError("a response_format of type json_schema needs json_schema", param="response_format")
        return msgspec.json.encode(self.json_schema.schema).decode()
