"""JSON schemas for property tests, and texts that a grammar allows, drawn at random."""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from common.grammar.compiler import PARSER_LIMITS
from common.grammar.lark import lark_of
from common.grammar.spec import GrammarKind, GrammarSpec

BYTES = LLTokenizer("byte")
"""A vocabulary of single bytes, and an end token."""
END = BYTES.eos_token
LONGEST = 300
"""Bytes of a text; one that is not complete by then is dropped."""
PATTERNS = [
    *(
        "^[a-z]+$",
        r"^\d{3}-\d{2}$",
        "^red|green$",
        '^"$',
        "^\n$",
        r"[^@]+@[^@]+\.com",
        r"^\w+$",
        "a",
        "^$",
        "x+y?",
        "^.{2,4}$",
    ),
    *(r"^[^\"\\]*$", r"^[^\\]{1,3}$", r"^\S+$", r"^\s$", r"^(a|b)*c$", r"^é+$", r"^[^a-y]$", r"^(?:ab|cd){2}$", r"\.$"),
    *(r"^a*?b+$", r"^[\w.-]+$", "^[\U0001f600-\U0001f64f]$", r"/", r"^[ -~]{3}$"),
]
SPACES = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""Unicode's white space; to Python four control characters are some, too."""
NAMES = ["a", "b", "ab", "é", "a b", 'q"', "\\", "\U0001f600", ""]
numbers = st.integers(-50, 50)
halves = numbers.map(lambda number: number / 2)
texts = st.text('ab1 "\\\n\té\U0001f600', max_size=3)
scalars = st.one_of(st.none(), st.booleans(), numbers, halves, texts)


def some_of(optional: dict[str, st.SearchStrategy[Any]], **fixed: Any) -> st.SearchStrategy[dict[str, Any]]:
    """A schema with any of the `optional` keywords."""
    return st.fixed_dictionaries({key: st.just(value) for key, value in fixed.items()}, optional=optional)


leaves = st.one_of(
    some_of({}, type="boolean"),
    some_of({}, type="null"),
    some_of(
        {"minimum": numbers, "maximum": numbers, "exclusiveMinimum": numbers, "multipleOf": st.integers(1, 7)},
        type="integer",
    ),
    some_of(
        {"minimum": halves, "maximum": halves, "exclusiveMinimum": halves, "exclusiveMaximum": halves}, type="number"
    ),
    numbers.flatmap(
        lambda low: some_of({"exclusiveMinimum": st.just(low), "maximum": st.just(low + 0.5)}, type="number")
    ),
    some_of({"minLength": st.integers(0, 4), "maxLength": st.integers(0, 6)}, type="string"),
    some_of(
        {"minLength": st.integers(0, 3), "maxLength": st.integers(1, 6)},
        type="string",
    ).flatmap(lambda part: st.sampled_from(PATTERNS).map(lambda pattern: part | {"pattern": pattern})),
    st.sampled_from(["date", "time", "date-time", "ipv4", "uuid", "email"]).map(
        lambda name: {"type": "string", "format": name}
    ),
    scalars.map(lambda value: {"const": value}),
    st.lists(scalars, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    st.booleans(),
    st.just({}),
)


def larger(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Arrays, objects and combinations of `inner` schemas."""
    names = st.sampled_from(NAMES)
    listed = st.lists(inner, min_size=1, max_size=3)
    array = {"items": inner, "prefixItems": listed, "minItems": st.integers(0, 2), "maxItems": st.integers(0, 3)}
    record = {
        "properties": st.dictionaries(names, inner, max_size=4),
        "required": st.lists(names, max_size=2, unique=True),
        "additionalProperties": inner,
        "patternProperties": st.dictionaries(st.sampled_from(PATTERNS), inner, min_size=1, max_size=2),
        "minProperties": st.integers(0, 3),
        "maxProperties": st.integers(0, 3),
    }
    combined = {"anyOf": listed, "oneOf": listed, "allOf": listed}
    return st.one_of(
        some_of(array, type="array"),
        some_of(record, type="object"),
        some_of(combined | record),
        some_of(combined | array),
    )


schemas = st.recursive(leaves, larger, max_leaves=6).filter(lambda schema: isinstance(schema, dict))


def faults(schema: dict[str, Any], text: str) -> list[str]:
    """What is wrong with `text` as JSON that must match `schema`, by the jsonschema library."""
    validator = jsonschema.Draft202012Validator(in_python(schema))
    return [error.message for error in validator.iter_errors(json.loads(text))]


def in_python(schema: Any) -> Any:
    """`schema` with its patterns in Python's syntax, where `$` may stand before a line's end and `\\w` is Unicode's."""
    if isinstance(schema, list):
        return [in_python(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: value if key in ("const", "enum") else in_python(value) for key, value in schema.items()}
    if isinstance(pattern := copy.get("pattern"), str):
        copy["pattern"] = _in_python(pattern)
    if isinstance(by_pattern := copy.get("patternProperties"), dict):
        copy["patternProperties"] = {_in_python(pattern): inner for pattern, inner in by_pattern.items()}
    return copy


def _in_python(pattern: str) -> str:
    ascii_only = pattern.replace(r"[\w", "[a-zA-Z0-9_").replace(r"\w", "[a-zA-Z0-9_]").replace(r"\d", "[0-9]")
    spaces = ascii_only.replace(r"\S", f"[^{SPACES}]").replace(r"\s", f"[{SPACES}]")
    return re.sub(r"(?<!\\)\$", r"\\Z", spaces)


def matcher_of(schema: dict[str, Any]) -> LLMatcher:
    """Raises GrammarError, as the compiler does, or returns a matcher in error, for what is refused."""
    text = lark_of(GrammarSpec(GrammarKind.JSON, json.dumps(schema)))
    return LLMatcher(BYTES, text, log_level=0, limits=PARSER_LIMITS)


def drawn(start: LLMatcher, source: random.Random, count: int) -> Iterator[str]:
    """Up to `count` complete texts that the grammar allows."""
    for _ in range(count):
        matcher, text = start.deep_copy(), bytearray()
        while len(text) < LONGEST:
            token = _token(matcher, source)
            if matcher.is_error():
                break
            if token == END:
                yield text.decode()
                break
            text.append(token)
            matcher.consume_token(token)


def _token(matcher: LLMatcher, source: random.Random) -> int:
    mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little")[: BYTES.vocab_size]).tolist()
    preferred = [token for token in allowed if token in (END, *b'"}],\\')]
    return source.choice(preferred if preferred and source.random() < 0.4 else allowed)
