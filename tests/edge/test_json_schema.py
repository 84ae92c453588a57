"""JSON schemas: what llama.cpp can enforce passes; what it would ignore or never finish is refused by name."""

from typing import Any

import pytest

from common.errors import RequestError
from edge.llama.json_schema import IGNORED, MAX_REPETITIONS, check


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"enum": [{"minimum": 1}], "default": {"not": 1}},
        {"properties": {"minimum": {"type": "string"}, "pattern": {"type": "integer"}, "maxLength": {}}},
        {"$defs": {"if": {"const": 1}}, "$ref": "#/$defs/if"},
        {"type": "string", "pattern": "^[A-Z]{2}-?[0-9]{1,4}$"},
        {"type": "string", "pattern": "^(on|off)+$"},
        {"type": "string", "minLength": 1, "maxLength": 500},
        nested(100),
    ],
)
def test_schemas_that_llama_cpp_can_enforce_pass(schema: dict[str, Any]) -> None:
    check(schema)


@pytest.mark.parametrize("keyword", sorted(IGNORED))
@pytest.mark.parametrize("place", ["properties", "items", "anyOf", "$defs"])
def test_an_ignored_keyword_is_refused_by_name_at_any_depth(keyword: str, place: str) -> None:
    inner = {keyword: 1}
    below: dict[str, Any] = {"properties": {"a": inner}, "items": inner, "anyOf": [{}, inner], "$defs": {"a": inner}}
    with pytest.raises(RequestError, match=f"{keyword} is not supported") as refusal:
        check({place: below[place]})
    assert refusal.value.param == "response_format"


@pytest.mark.parametrize(
    "schema",
    [
        {"maxLength": 2**31},
        {"minItems": MAX_REPETITIONS + 1},
        {"anyOf": [{"maxLength": 400}] * 6},
        {"anything": {"maxItems": 10**9}, "$ref": "#/anything"},
        {"pattern": "^a{99999999}$"},
        {"pattern": "^a{100}b{100}$"},
        {"pattern": "^(a{9}){9}$"},
        {"pattern": "^(a?){64}$"},
        {"pattern": "^" + "a?" * 9 + "$"},
        {"pattern": "^([a-z]{0,40}[a-z]{0,40})+$"},
    ],
    ids=lambda schema: str(schema)[:40],
)
def test_a_schema_that_would_fill_memory_or_never_finish_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        check(schema)


def test_too_deep_nesting_is_refused() -> None:
    with pytest.raises(RequestError, match="nested too deeply"):
        check(nested(5000))
