"""Log probabilities as OpenAI shows them: one shape for chats, one for completions. Knows no engine."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from common.types import TokenLogprob

Spell = Callable[[int], bytes]
"""From a token id to its bytes, special tokens spelled out."""

LEAST = -9999.0
"""What stands for minus infinity, which JSON cannot say."""


class ScoredToken(NamedTuple):
    """One token of a text; `score` is None for a prompt's first token, which nothing comes before.

    `offset` is where it begins in the text, in characters.
    """

    token_id: int
    offset: int
    score: TokenLogprob | None


def of_chat(tokens: Sequence[ScoredToken], top: int, spell: Spell) -> dict[str, Any]:
    """The `logprobs` object of a chat's choice, with the `top` likeliest tokens at each position."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        data = spell(token_id)
        return {"token": data.decode(errors="replace"), "logprob": max(logprob, LEAST), "bytes": list(data)}

    scores = [token.score for token in tokens if token.score is not None]
    content = [
        {**entry(score.token_id, score.logprob), "top_logprobs": [entry(*likely) for likely in score.top[:top]]}
        for score in scores
    ]
    return {"content": content, "refusal": None}


def of_completion(tokens: Sequence[ScoredToken], top: int, spell: Spell) -> dict[str, Any]:
    """The `logprobs` object of a completion's choice: lists with a place for each token.

    `top_logprobs` hold the token itself too, be it among the `top` likeliest or not.
    """

    def text(token_id: int) -> str:
        data = spell(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def likeliest(score: TokenLogprob) -> dict[str, float]:
        found: dict[str, float] = {}
        for token_id, logprob in [*score.top[:top], (score.token_id, score.logprob)]:
            found.setdefault(text(token_id), max(logprob, LEAST))  # of two spelled alike, the likelier
        return found

    scores = [token.score for token in tokens]
    return {
        "tokens": [text(token.token_id) for token in tokens],
        "token_logprobs": [score and max(score.logprob, LEAST) for score in scores],
        "top_logprobs": [score and likeliest(score) for score in scores],
        "text_offset": [token.offset for token in tokens],
    }
