"""Defines the nested options of OpenAI requests: response format, streaming, collaboration."""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from common.errors import RequestError
from common.grammar.spec import ANY_OBJECT, GrammarKind, GrammarSpec
from common.protocol.openai_fields import UnreadFields

ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class StreamOptions(Struct, forbid_unknown_fields=True):
    """`include_usage`: the last event of a stream reports token counts; with `continuous_usage_stats` each one does."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None
    """Taken without effect."""


class CollaborationOptions(Struct, forbid_unknown_fields=True):
    """`tokens`: the response lists each token with its source and confidence."""

    tokens: bool | None = None


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
    def grammar(self) -> GrammarSpec | None:
        """What the answer must match; None for plain text."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return ANY_OBJECT
        if self.json_schema is None:
            raise RequestError("a response_format of type json_schema needs json_schema", param="response_format")
        return GrammarSpec(GrammarKind.JSON, msgspec.json.encode(self.json_schema.schema).decode())


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """vLLM's field for what the answer must match; one of its fields is set."""

    json: str | dict[str, Any] | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None

    @property
    def spec(self) -> GrammarSpec:
        """Raises RequestError unless exactly one field is set."""
        given = [name for name in self.__struct_fields__ if getattr(self, name) not in (None, False)]
        if len(given) != 1 or self.choice == []:
            raise RequestError("give one of json, json_object, regex, choice, grammar", param="structured_outputs")
        if self.json_object:
            return ANY_OBJECT
        value = getattr(self, given[0])
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        return GrammarSpec(GrammarKind(given[0]), text)


class GuidedFields(UnreadFields, kw_only=True, omit_defaults=True):
    """vLLM's names of `structured_outputs` before 0.12: clients send them, some beside the newer one, which counts."""

    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    @property
    def guided(self) -> StructuredOutputs | None:
        """Those that are given, by their newer names."""
        kinds = ("json", "regex", "choice", "grammar")
        given = {kind: value for kind in kinds if (value := getattr(self, f"guided_{kind}")) is not None}
        return StructuredOutputs(**given) if given else None
