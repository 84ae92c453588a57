"""A router: what its score depends on, and which files are refused."""

import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.routing import features, router
from common.routing.router import Routing, Side, route
from tests.support.routing.routers import blind, doubtful

SHARES = st.floats(0, 1)


@settings(deadline=None)
@given(st.text(max_size=200), st.integers(0, 10**6), st.lists(SHARES, min_size=1, max_size=64), st.booleans())
def test_every_feature_of_every_request_is_a_finite_number(
    text: str, tokens: int, confidences: list[float], finished: bool
) -> None:
    found = features.of_prompt(text, tokens) | features.of_draft(confidences, finished)
    assert found.keys() == set(features.NAMES)
    assert all(math.isfinite(value) for value in found.values())


def test_the_features_of_a_text_tell_kinds_of_questions_apart() -> None:
    fact, task, code = (
        features.of_prompt(text, 10)
        for text in ("Who wrote Hamlet?", "Add 1250 and 37", "def f(x):\n    return {x: [x]}")
    )
    assert (fact["asks"], task["asks"], code["asks"]) == (1, 0, 0)
    assert (fact["asks_name"], fact["asks_what"]) == (1, 0)
    assert task["digit_share"] > fact["digit_share"] == 0
    assert task["longest_number"] == 4
    assert code["code_share"] > task["code_share"] == 0
    assert code["log_lines"] > fact["log_lines"] == 0


def test_of_a_long_text_only_its_length_and_its_two_ends_are_looked_at() -> None:
    half = features.LOOKED_AT // 2
    begin, end = "Who wrote ".ljust(half, "w"), "Hamlet?".rjust(half, "w")
    short = features.of_prompt(begin + end, 10)
    one, other = (features.of_prompt(begin + middle * half + end, 10) for middle in "7w")
    assert one == other
    assert {name for name in short if short[name] != one[name]} == {"log_characters"}


@settings(deadline=None)
@given(st.lists(SHARES, min_size=3, max_size=3), st.lists(SHARES, min_size=3, max_size=3))
def test_a_higher_confidence_never_raises_the_score_of_a_router_that_trusts_it(
    one: list[float], other: list[float]
) -> None:
    low, high = ([pick(pair) for pair in zip(one, other, strict=True)] for pick in (min, max))
    scores = [Routing(doubtful(), 0.5, {}).decide(each, finished=False).score for each in (low, high)]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0] >= scores[1] - 1e-12


@settings(deadline=None)
@given(SHARES)
def test_the_cloud_answers_from_the_threshold_on(threshold: float) -> None:
    sure = blind(score_is_high=True)
    decision = route(sure, {}, threshold)
    assert decision.side is (Side.CLOUD if sure.score({}) >= threshold else Side.EDGE)
    assert route(sure, {}, 0.0).side is Side.CLOUD


def test_only_as_many_tokens_count_as_the_router_was_trained_on() -> None:
    routing = Routing(doubtful(2), 0.5, {})
    assert routing.decide([0.9, 0.9, 0.01], False) == routing.decide([0.9, 0.9], False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": {"mood": 1.0}}, "there is no feature 'mood'"),
        ({"tokens": 0}, "of the edge's first tokens"),
        ({"tokens": -1}, "tokens"),
        ({"threshold": 2.0}, "threshold"),
        ({"bias": None}, "bias"),
        ({"bias": 1e300}, "from -1000000 to 1000000"),
        ({"weights": {"mean_odds": -1e300}}, "from -1000000 to 1000000"),
        ({"extra": 1}, "unknown field `extra`"),
        ({"two\nlines\x1b[31m": 1}, r"unknown field `two\\nlines\\x1b\[31m`"),
    ],
)
def test_a_file_that_is_no_router_is_refused_with_its_name(
    change: dict[str, object], reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "router.json"
    file.write_bytes(msgspec.json.encode(msgspec.to_builtins(doubtful()) | change))
    with pytest.raises(ConfigError, match=reason) as refused:
        router.load(file)
    assert str(file) in refused.value.message
    assert refused.value.message.isprintable()


def test_a_router_comes_back_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "router.json"
    file.write_bytes(msgspec.json.encode(doubtful()))
    assert router.load(file) == doubtful()
    with pytest.raises(ConfigError, match="No such file"):
        router.load(tmp_path / "none.json")
