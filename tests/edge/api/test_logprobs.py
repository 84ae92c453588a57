"""OpenAI's two shapes of log probabilities, of made-up tokens."""

import json
import math

from common.types import TokenLogprob
from edge.api.rendering.logprobs import MIN_LOGPROB, ScoredToken, of_chat, of_completion

SPELLED = {0: b"a", 1: "é".encode()[:1], 2: b"a", 3: b"<end>"}
TOKENS = [
    ScoredToken(0, 0, None),
    ScoredToken(1, 1, TokenLogprob(1, -2.0, [(0, -0.5), (2, -1.0)])),
    ScoredToken(3, 1, TokenLogprob(3, -math.inf, [(0, -0.5), (1, -1.5)])),
]


def test_a_completion_has_lists_of_equal_length_and_the_token_itself_among_the_likeliest() -> None:
    scores = of_completion(TOKENS, 2, SPELLED.__getitem__)
    assert scores == {
        "tokens": ["a", "bytes:\\xc3", "<end>"],
        "token_logprobs": [None, -2.0, MIN_LOGPROB],
        "top_logprobs": [
            None,
            {"a": -0.5, "bytes:\\xc3": -2.0},
            {"a": -0.5, "bytes:\\xc3": -1.5, "<end>": MIN_LOGPROB},
        ],
        "text_offset": [0, 1, 1],
    }
    json.dumps(scores, allow_nan=False)


def test_a_chat_has_an_entry_for_each_scored_token_with_its_bytes() -> None:
    first, last = of_chat(TOKENS, 1, SPELLED.__getitem__)["content"]
    likeliest = [{"token": "a", "logprob": -0.5, "bytes": [97]}]
    assert first == {"token": "\ufffd", "logprob": -2.0, "bytes": [0xC3], "top_logprobs": likeliest}
    assert last == {"token": "<end>", "logprob": MIN_LOGPROB, "bytes": list(b"<end>"), "top_logprobs": likeliest}


def test_no_alternatives_are_given_where_none_are_wanted() -> None:
    assert [token["top_logprobs"] for token in of_chat(TOKENS, 0, SPELLED.__getitem__)["content"]] == [[], []]
    assert of_completion(TOKENS, 0, SPELLED.__getitem__)["top_logprobs"] == [
        None,
        {"bytes:\\xc3": -2.0},
        {"<end>": MIN_LOGPROB},
    ]
