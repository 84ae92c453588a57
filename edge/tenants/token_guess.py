"""Guesses how many tokens a prompt has that somebody else will read, before it is sent."""

from collections.abc import Mapping, Sequence
from typing import Any

from common.cloud_client.privacy import texts_of

CHARACTERS = 4
"""Of a token, about."""
PROMPTS = ("prompt", "input", "prompt_token_ids")
"""The fields that may have token ids."""
PAIRS = (("query", "documents"), ("text_1", "text_2"))
"""Fields of ranks and scores: a text, which is read again with each of a list."""


def guessed_tokens(body: Mapping[str, Any]) -> int:
    """At least 1. Token ids are counted; images and sounds are not."""
    characters = sum(map(len, texts_of(list(body.values()))))
    for first, others in ((body.get(one), body.get(many)) for one, many in PAIRS):
        if isinstance(first, str) and isinstance(others, list):
            characters += len(first) * max(0, len(others) - 1)
    return max(1, characters // CHARACTERS + sum(_ids(body.get(name)) for name in PROMPTS))


def _ids(value: object) -> int:
    """The token ids in a prompt, or in a list of prompts."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return 0
    return sum(1 if isinstance(item, int) else _ids(item) for item in value)
