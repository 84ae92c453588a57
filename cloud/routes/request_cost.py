"""What a request may cost the engine, told from its body: sequences and tokens. Pure; exact where ids are given."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from common.errors import RequestError
from common.types import VerifyRequest

CHARACTERS_A_TOKEN = 4
"""Of ordinary text in common vocabularies; an estimate, since counting takes the tokenizer."""


COMPLETION_TOKENS = 16
"""What a completion that does not say has, in OpenAI's API; a chat goes on to the end of the context."""


class Cost(NamedTuple):
    """Sequences, and the tokens that they may grow to in all."""

    requests: int
    tokens: int


def of_round(request: VerifyRequest) -> int:
    """Tokens of one verify: what is committed, the draft, and what may be drawn."""
    committed = request.prefix_length + len(request.new_token_ids) or of_text(request.prompt)
    return max(committed, 0) + len(request.draft_token_ids) + max(request.max_tokens, 1)


def of_generation(body: Mapping[str, Any], context: int, max_sequences: int) -> Cost:
    """Cost of a /v1 request, whose types nobody has checked yet; `context` bounds each sequence.

    Raises RequestError when it asks for more than `max_sequences`.
    """
    prompts = _prompts(body)
    sequences = len(prompts) * max([1, *(_count(body.get(name)) for name in ("n", "best_of"))])
    if sequences > max_sequences:
        raise RequestError(f"n times the prompts makes {sequences} sequences; at most {max_sequences}", param="n")
    unsaid = context if body.get("prompt") is None else COMPLETION_TOKENS
    asked = _count(body.get("max_completion_tokens")) or _count(body.get("max_tokens")) or unsaid
    tokens = sum(min(_tokens(prompt) + asked, context) for prompt in prompts)
    return Cost(sequences, tokens * (sequences // len(prompts)))


def of_text(text: str) -> int:
    """About how many tokens a text has."""
    return len(text) // CHARACTERS_A_TOKEN + 1


def _prompts(body: Mapping[str, Any]) -> Sequence[object]:
    """The prompts of a completion, each text or ids; or a chat's messages as one."""
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
