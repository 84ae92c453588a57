"""Which JSON schemas an answer can be held to. Pure: knows no grammar and no model.

llama.cpp makes a grammar of a schema. It passes over what it has no grammar for, writes every repetition out, and
follows all ways to read a text at once, of which a pattern can have billions. So the first is refused here by name, and
so is what would fill the memory or never end.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from common.errors import RequestError

IGNORED = frozenset(
    "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf uniqueItems contains minContains maxContains not if "
    "then else minProperties maxProperties propertyNames patternProperties dependentRequired dependentSchemas "
    "unevaluatedItems unevaluatedProperties".split()
)
"""Keywords that would hold nothing back."""
COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
MAX_REPETITIONS = 2000
"""In the whole schema: what llama.cpp itself takes, at most."""
MAX_QUANTIFIERS = 8
"""In one pattern: with twelve, a step of the engine was seen to take ten times as long, with forty it did not end."""
SCHEMAS_BY_NAME = ("properties", "$defs", "definitions")
LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
SCHEMAS = ("items", "additionalProperties")


def check(schema: Any) -> None:
    """Raises RequestError, naming what is wrong, for a schema that answers cannot be held to."""
    try:
        ignored = [name for part in parts(schema) for name in sorted(IGNORED & part.keys())]
        repetitions = sum(map(repetitions_of, objects(schema)))
    except RecursionError as error:
        raise RequestError("the JSON schema is nested too deeply", param="response_format") from error
    if ignored:
        _refuse(f"{ignored[0]} is not supported")
    if repetitions > MAX_REPETITIONS:
        _refuse(f"lengths, numbers of items and repetitions of patterns come to more than {MAX_REPETITIONS}")


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    """The schema and all schemas in it."""
    if not isinstance(schema, dict):
        return
    yield schema
    below = [schema.get(name) for name in SCHEMAS]
    for name in LISTS_OF_SCHEMAS:
        below += schema[name] if isinstance(schema.get(name), list) else []
    for name in SCHEMAS_BY_NAME:
        below += schema[name].values() if isinstance(schema.get(name), dict) else []
    for one in below:
        yield from parts(one)


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value: a `$ref` may make a schema of any of them."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from objects(one)


def repetitions_of(part: dict[str, Any]) -> int:
    """How often this object, if it is a schema, has something of itself written out, at most."""
    counts: list[int] = [part[name] for name in COUNTS if isinstance(part.get(name), int)]
    pattern = part.get("pattern")
    return sum(counts) + (pattern_repetitions(pattern) if isinstance(pattern, str) else 0)


def pattern_repetitions(pattern: str) -> int:
    """The counted repetitions multiplied, as one may stand inside another; refuses a pattern with too many ways."""
    if len(re.findall(r"[?*+{]", pattern)) > MAX_QUANTIFIERS:
        _refuse(f"a pattern may have {MAX_QUANTIFIERS} of ? * + and {{}}")
    if "{" in pattern and re.search(r"\)[?*+{]", pattern):
        _refuse("a pattern that repeats a group may not count repetitions")
    bounds = re.findall(r"\{(\d{1,9})(?:,(\d{0,9}))?", pattern)
    return math.prod(max(int(least), int(most or 0), 1) for least, most in bounds)


def _refuse(reason: str) -> None:
    raise RequestError(f"the edge cannot hold an answer to this JSON schema: {reason}", param="response_format")
