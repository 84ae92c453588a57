"""A request's cost is estimated from its body: sequences, and tokens up to the context length."""

from typing import Any

import pytest

from cloud.routes.request_cost import Cost, of_generation, of_round
from common.errors import RequestError
from common.types import VerifyRequest


@pytest.mark.parametrize(
    ("body", "cost"),
    [
        ({"prompt": [1, 2, 3], "max_tokens": 5}, Cost(1, 8)),
        ({"prompt": [1, 2, 3]}, Cost(1, 19)),
        ({"prompt": [[1], [2, 3]], "n": 3, "max_tokens": 5}, Cost(6, 3 * (6 + 7))),
        ({"prompt": "a" * 40, "max_tokens": 5}, Cost(1, 16)),
        ({"prompt": [1] * 90, "max_tokens": 50}, Cost(1, 100)),
        ({"messages": [{"role": "user", "content": "a" * 40}]}, Cost(1, 100)),
        ({"prompt": "a", "max_tokens": -5, "n": -2}, Cost(1, 17)),
        ({"prompt": {"a": 1}}, Cost(1, 16)),
        ({}, Cost(1, 100)),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_generation_costs_its_prompts_and_longest_answers(body: dict[str, Any], cost: Cost) -> None:
    assert of_generation(body, context=100, max_sequences=8) == cost


def test_more_sequences_than_the_limit_are_refused() -> None:
    with pytest.raises(RequestError):
        of_generation({"prompt": ["a"] * 3, "n": 3}, context=100, max_sequences=8)


def test_a_round_costs_its_committed_drafted_and_drawn_tokens() -> None:
    assert of_round(VerifyRequest(prefix_length=30, new_token_ids=[1, 2], draft_token_ids=[3] * 8)) == 41
    assert of_round(VerifyRequest(prompt="a" * 40, max_tokens=4)) == 15
    assert of_round(VerifyRequest(prefix_length=-7, max_tokens=-1)) >= 0
