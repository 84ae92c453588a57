"""Renders log probabilities as OpenAI does: one JSON shape for chats, another for completions."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from common.types import TokenLogprob

Spell = Callable[[int], bytes]
"""From a token id to its bytes; special tokens too."""

MIN_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot express."""


class ScoredToken(NamedTuple):
    """One token of a text; `score` is None for a prompt's first token, which has no context.

    `offset`: where it begins in the text, in characters.
    """

    token_id: int
    offset: int
    score: TokenLogprob | None


def of_chat(tokens: Sequence[ScoredToken], top: int, spell: Spell) -> dict[str, Any]:
    """The `logprobs` object of a chat's choice, with the `top` likeliest tokens at each position."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        data = spell(token_id)
        return {"token": data.decode(errors="replace"), "logprob": max(logprob, MIN_LOGPROB), "bytes": list(data)}

    scores = [token.score for token in tokens if token.score is not None]
    content = [
        {**entry(score.token_id, score.logprob), "top_logprobs": [entry(*likely) for likely in score.top[:top]]}
        for score in scores
    ]
    return {"content": content, "refusal": None}


def of_completion(tokens: Sequence[ScoredToken], top: int, spell: Spell) -> dict[str, Any]:
    """The `logprobs` object of a completion's choice: lists with one entry for each token.

    `top_logprobs` includes the token itself, even if it is not among the `top` likeliest.
    """

    def text(token_id: int) -> str:
        data = spell(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def likeliest(score: TokenLogprob) -> dict[str, float]:
        logprobs: dict[str, float] = {}
        for token_id, logprob in [*score.top[:top], (score.token_id, score.logprob)]:
            logprobs.setdefault(text(token_id), max(logprob, MIN_LOGPROB))  # of two with the same text, the likelier
        return logprobs

    scores = [token.score for token in tokens]
    return {
        "tokens": [text(token.token_id) for token in tokens],
        "token_logprobs": [score and max(score.logprob, MIN_LOGPROB) for score in scores],
        "top_logprobs": [score and likeliest(score) for score in scores],
        "text_offset": [token.offset for token in tokens],
    }
