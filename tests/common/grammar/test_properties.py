"""Whatever a grammar allows is valid: schemas and texts drawn at random, checked by the jsonschema library."""

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import GrammarError
from tests.common.grammar.schemas import PATTERNS, drawn, faults, matcher_of, schemas


def check(schema: dict[str, Any], source: random.Random, texts: int = 4) -> int:
    """The number of texts drawn, which all are valid; 0 also for a schema that is refused."""
    try:
        matcher = matcher_of(schema)
    except GrammarError:
        return 0
    count = 0
    for text in drawn(matcher, source, texts):
        assert faults(schema, text) == [], (schema, text)
        count += 1
    return count


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
@given(schemas, st.integers(0, 2**30))
def test_whatever_a_schema_allows_is_valid(schema: dict[str, Any], seed: int) -> None:
    check(schema, random.Random(seed))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_whatever_a_pattern_allows_matches_it(pattern: str) -> None:
    check({"type": "string", "pattern": pattern}, random.Random(pattern), texts=60)


@pytest.mark.long
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(schemas, st.integers(0, 2**30))
def test_whatever_many_schemas_allow_is_valid(schema: dict[str, Any], seed: int) -> None:
    check(schema, random.Random(seed))
