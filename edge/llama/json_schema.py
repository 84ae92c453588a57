"""Checks that llama.cpp can enforce a JSON schema, before it compiles the schema to a grammar.

llama.cpp ignores keywords that it cannot express, expands every repetition, and follows all parses of a text at the
same time, of which a pattern can have billions. So this refuses, by name, the keywords that would be ignored, and
schemas that would take too much memory or never finish.
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
"""Keywords that llama.cpp would ignore."""
COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
MAX_REPETITIONS = 2000
"""In the whole schema; llama.cpp accepts no more."""
MAX_QUANTIFIERS = 8
"""In one pattern: with 12, one step of the engine took ten times as long; with 40 it did not finish."""
SCHEMAS_BY_NAME = ("properties", "$defs", "definitions")
LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
SCHEMAS = ("items", "additionalProperties")


def check(schema: Any) -> None:
    """Raises RequestError, naming the reason, for a schema that llama.cpp cannot enforce."""
    try:
        ignored = [name for part in parts(schema) for name in sorted(IGNORED & part.keys())]
        repetitions = sum(map(repetitions_of, objects(schema)))
    except RecursionError as error:
        raise RequestError("the JSON schema is nested too deeply", param="response_format") from error
    if ignored:
        _refuse(f"{ignored[0]} is not supported")
    if repetitions > MAX_REPETITIONS:
        _refuse(f"string lengths, item counts and pattern repetitions add up to more than {MAX_REPETITIONS}")


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    """The schema and all schemas nested in it."""
    if not isinstance(schema, dict):
        return
    yield schema
    below = [schema.get(name) for name in SCHEMAS]
    for name in LISTS_OF_SCHEMAS:
        below += schema[name] if isinstance(schema.get(name), list) else []
    for name in SCHEMAS_BY_NAME:
        below += schema[name].values() if isinstance(schema.get(name), dict) else []
    for inner in below:
        yield from parts(inner)


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value: a `$ref` may refer to any of them as a schema."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from objects(inner)


def repetitions_of(part: dict[str, Any]) -> int:
    """Upper bound of the repetitions that llama.cpp expands for this object, if it is a schema."""
    counts: list[int] = [part[name] for name in COUNTS if isinstance(part.get(name), int)]
    pattern = part.get("pattern")
    return sum(counts) + (pattern_repetitions(pattern) if isinstance(pattern, str) else 0)


def pattern_repetitions(pattern: str) -> int:
    """The product of the counted repetitions, as they may be nested; refuses patterns with too many parses."""
    if len(re.findall(r"[?*+{]", pattern)) > MAX_QUANTIFIERS:
        _refuse(f"a pattern may have at most {MAX_QUANTIFIERS} quantifiers (? * + {{}})")
    if "{" in pattern and re.search(r"\)[?*+{]", pattern):
        _refuse("a pattern may not use {} and also repeat a group")
    bounds = re.findall(r"\{(\d{1,9})(?:,(\d{0,9}))?", pattern)
    return math.prod(max(int(lower), int(upper or 0), 1) for lower, upper in bounds)


def _refuse(reason: str) -> None:
    raise RequestError(f"the edge cannot enforce this JSON schema: {reason}", param="response_format")
