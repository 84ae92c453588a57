"""Estimates from a request's body how many sequences and tokens it may cost; exact where token ids are given."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from common.errors import RequestError
from common.types import Sampling, VerifyRequest

CHARACTERS_A_TOKEN = 4
"""Of ordinary text in common vocabularies: an estimate, because counting needs the tokenizer."""
COMPLETION_TOKENS = 16
"""OpenAI's default of a completion's `max_tokens`; a chat without one may go on to the end of the context."""


class Cost(NamedTuple):
    """Number of sequences, and of the tokens that they may reach in total."""

    requests: int
    tokens: int


def of_round(request: VerifyRequest) -> int:
    """Tokens of one verify: committed ones, the draft, and those that may be drawn."""
    committed = request.prefix_length + len(request.new_token_ids) or of_text(request.prompt)
    return max(committed, 0) + len(request.draft_token_ids) + max(request.max_tokens, 1)


def has_begun(tokens: int, sampling: Sampling) -> bool:
    """Whether a part of the answer is among so many committed tokens: a whole prefix tells nothing else of it."""
    return sampling.prompt_tokens is not None and tokens > sampling.prompt_tokens


def of_generation(body: Mapping[str, Any], context: int, max_sequences: int) -> Cost:
    """Cost of a /v1 request whose types are not checked yet; each sequence has at most `context` tokens.

    Raises RequestError if it asks for more than `max_sequences`.
    """
    prompts = _prompts(body)
    sequences = len(prompts) * max([1, *(_count(body.get(name)) for name in ("n", "best_of"))])
    if sequences > max_sequences:
        raise RequestError(
            f"n times the number of prompts is {sequences} sequences; at most {max_sequences} are allowed", param="n"
        )
    default = context if body.get("prompt") is None else COMPLETION_TOKENS
    max_tokens = _count(body.get("max_completion_tokens")) or _count(body.get("max_tokens")) or default
    tokens = sum(min(_tokens(prompt) + max_tokens, context) for prompt in prompts)
    return Cost(sequences, tokens * (sequences // len(prompts)))


def of_text(text: str) -> int:
    """Estimated number of tokens of a text."""
    return len(text) // CHARACTERS_A_TOKEN + 1


def _prompts(body: Mapping[str, Any]) -> Sequence[object]:
    """The prompts of a completion, each as text or ids; or a chat's messages as one prompt."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return prompt
    return [body.get("messages") if prompt is None else prompt]


def _tokens(prompt: object) -> int:
    match prompt:
        case str():
            return of_text(prompt)
        case [int(), *_]:
            return len(prompt)
        case list():
            return sum(map(_tokens, prompt))
        case dict():
            return sum(map(_tokens, prompt.values()))
        case _:
            return 0


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
