"""A deterministic toy model over small integers, in place of a real cloud model, and greedy verification by it."""

from collections.abc import Callable, Sequence

from common.protocol.prefix_hash import common_prefix
from common.types import FinishReason, Verdict

END = 0
"""The token that ends an answer."""

Model = Callable[[Sequence[int]], int]
"""The next token after a context."""


def cloud_model(token_ids: Sequence[int]) -> int:
    """The cloud's next token after a context; about one context in 17 ends the answer."""
    value = (31 * sum(token_ids) + 7 * len(token_ids)) % 101
    return END if value < 6 else value


def answer_of(model: Model, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """What a model answers alone, with its END; at most `max_tokens` tokens."""
    ids = list(prompt)
    while len(ids) < len(prompt) + max_tokens:
        ids.append(model(ids))
        if ids[-1] == END:
            break
    return ids[len(prompt) :]


CONTEXT = 10_000
"""Tokens of a context that no answer fills."""


def verify(
    token_ids: Sequence[int], draft: Sequence[int], max_tokens: int, context: int = CONTEXT, model: Model = cloud_model
) -> Verdict:
    """The model's greedy verdict on `draft` after `token_ids`; `latency_ms` is always 2."""
    room = context - len(token_ids)
    truth = answer_of(model, token_ids, min(len(draft) + max_tokens, room))
    accepted = common_prefix(list(draft), truth)
    ids = truth[: accepted + 1] if draft else truth
    ended = FinishReason.STOP if ids[-1] == END else FinishReason.LENGTH if len(ids) == room else None
    return Verdict(ids, accepted, ended, 2.0)
