"""JSON schemas: what can be held is held, what cannot be is refused by name; one definition of white space."""

import json
import re
from typing import Any

import pytest

from common.errors import GrammarError
from common.grammar.json_schema import MAX_DEPTH, MAX_OPTIONAL
from common.grammar.lark import MAX_TEXT
from tests.common.grammar.schemas import faults, matcher_of

RECURSIVE = {
    "$defs": {"tree": {"type": "object", "properties": {"in": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}},
    "$ref": "#/$defs/tree",
}
CATS_AND_DOGS = {
    "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
    "discriminator": {"propertyName": "kind"},
    "$defs": {
        "Cat": {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]},
        "Dog": {"type": "object", "properties": {"kind": {"const": "dog"}}, "required": ["kind"]},
    },
}
OPEN = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
NULL, INTEGER = {"type": "null"}, {"type": "integer"}
COMPOSED = {"type": "object", "allOf": [{"properties": {"a": INTEGER}}, {"properties": {"b": NULL}}]}


def allows(schema: dict[str, Any], text: str) -> bool:
    matcher = matcher_of(schema)
    assert not matcher.is_error(), matcher.get_error()
    return bool(matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting())


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "integer", "minimum": 3, "maximum": 12}, "12", "13"),
        ({"type": "string", "pattern": r"^\d{3}-\w+$"}, '"123-a_9"', '"123-"'),
        ({"type": "string", "pattern": "b"}, '"abc"', '"ac"'),
        (RECURSIVE, '{"in":[{"in":[]},{}]}', '{"in":[1]}'),
        ({"type": "string", "pattern": "^red|green$"}, '"redder"', '"rred"'),
        ({"type": "string", "pattern": '^"$'}, '"\\""', '"a"'),
        ({"type": "string", "pattern": "^\n$"}, '"\\n"', '"n"'),
        ({"type": "string", "pattern": r'^[^"\\]+$'}, '"é\\t"', '"a\\""'),
        ({"enum": ["\U0001f600", 7]}, '"\U0001f600"', '"\U0001f601"'),
        ({"type": "string", "format": "email", "maxLength": 9}, '"a@b.cd"', '"abc@defg.hij"'),
        ({"allOf": [{"minimum": 2}, {"maximum": 4}], "type": "integer"}, "3", "5"),
        ({"type": "object", "properties": {"a": NULL}, "required": ["b"]}, '{"a":null, "b":1}', '{"a":null}'),
        ({"type": "string", "pattern": "^a*$", "maxLength": 3}, '"aaa"', '"aaaa"'),
        ({"$ref": "#/$defs/x", "maxLength": 2, "$defs": {"x": {"type": "string", "minLength": 2}}}, '"ab"', '"a"'),
        ({"type": "string", "maxLength": 1200}, json.dumps("x" * 1200), json.dumps("x" * 1201)),
        (CATS_AND_DOGS, '{"kind": "dog"}', '{"kind": "cow"}'),
        (COMPOSED, '{"a":1, "b":null, "c":2}', '{"a":"x"}'),
        (OPEN, '{"a":1, "b":"x"}', '{"b":1}'),
        ({"type": "object", "properties": {"a": False, "b": True}}, '{"b":2}', '{"a":2}'),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "0.25", "0"),
        ({"type": "number", "minimum": -1.5, "exclusiveMaximum": -1}, "-1.25", "-1"),
        ({"allOf": [{"exclusiveMinimum": 10}, {"exclusiveMaximum": 10.5}], "type": "number"}, "10.1", "10"),
        ({"type": "integer", "maximum": 2**53 + 3}, str(2**53), str(2**53 + 4)),
        ({"type": "integer", "minimum": 2**53 + 1}, str(2**53 + 2), str(2**53)),
        ({"type": "array", "prefixItems": [NULL], "additionalItems": False}, "[null, 1]", "[1]"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_is_taken_is_held(schema: dict[str, Any], right: str, wrong: str) -> None:
    assert faults(schema, right) == []
    assert faults(schema, wrong) != []
    assert (allows(schema, right), allows(schema, wrong)) == (True, False)


@pytest.mark.parametrize("schema", [OPEN, COMPOSED], ids=["open", "composed"])
def test_a_declared_name_has_no_second_spelling(schema: dict[str, Any]) -> None:
    assert allows(schema, r'{"\u0061":"x"}') is False


def test_an_object_has_no_other_properties_than_it_declares_unless_it_says_so() -> None:
    declared = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert allows(declared, '{"a":1, "b":1}') is False
    assert allows({**declared, "additionalProperties": True}, '{"a":1, "b":1}')
    assert allows({"type": "object"}, '{"b":1}')


@pytest.mark.parametrize("text", ['{"a":[1,2]}', '{"a": [1, 2]}'])
def test_white_space_is_one_space_after_a_comma_or_colon(text: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array"}}}
    assert allows(schema, text)
    for wrong in (text.replace("[", "[ "), text.replace(",", ",  "), text.replace(":", ":\n"), " " + text, text + " "):
        assert not allows(schema, wrong)
    assert not allows(schema | {"x-guidance": {"whitespace_flexible": True}}, '{\n"a": []}')


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        *(({keyword: {}}, keyword) for keyword in ("not", "if", "contains", "propertyNames", "unevaluatedItems")),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"oneOf": [{"type": "string"}, {"minLength": 3}]}, "oneOf"),
        ({"type": "string", "pattern": "^+[a-z]$"}, "pattern"),
        ({"type": "string", "pattern": "(?i)a"}, "pattern"),
        ({"type": "string", "pattern": "a(?=b)"}, "look-around"),
        ({"type": "string", "pattern": "[[a]b]"}, "pattern"),
        ({"type": "string", "pattern": r"^[\x00-!]$"}, "pattern"),
        ({"type": "string", "pattern": "("}, "pattern"),
        ({"type": "string", "pattern": "a\\"}, "pattern"),
        ({"type": "string", "pattern": r"^\x{41}$"}, "pattern"),
        ({"type": "string", "format": "no-such"}, "format"),
        ({"properties": {"a": {"enum": []}}}, "enum"),
        ({"type": 5}, "type"),
        ({"type": "strin"}, "strin"),
        ({"$ref": "http://example.com/x"}, r"\$ref"),
        ({"$ref": "#/x/y", "x": {"y": {}}}, r"\$ref"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"type": "object", "properties": {str(n): {} for n in range(MAX_OPTIONAL + 1)}}, f"{MAX_OPTIONAL} are"),
        ({"patternProperties": {f"^{n}": {} for n in range(33)}}, "patternProperties"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum"),
        ({"enum": ["x" * MAX_TEXT]}, "characters"),
        ({"const": 2**53 + 1}, "const"),
        ({"const": -(2**63)}, "const"),
        ({"enum": [{"a": [123456789.123456789]}]}, "enum"),
        ({"type": "integer", "maximum": 10**400}, "large"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_held_is_refused_by_name(schema: dict[str, Any], name: str) -> None:
    try:
        fault = matcher_of(schema).get_error()
    except GrammarError as error:
        fault = error.message
    assert re.search(name, fault)


def test_a_schema_that_is_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(MAX_DEPTH + 1):
        schema = {"items": schema}
    with pytest.raises(GrammarError, match="deep"):
        matcher_of(schema)
    assert not matcher_of(schema["items"]).is_error()
