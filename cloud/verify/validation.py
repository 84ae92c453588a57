"""Checks a verify request's ranges, sizes and names; raises RequestError with the path of the wrong field."""

import math

from common.errors import ContextLengthError, RequestError
from common.protocol.tokenization import LONGEST_TOKEN
from common.types import Sampling, VerifyRequest

MAX_NAME = 128
MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_LOGPROBS = 20


def check(request: VerifyRequest, vocab_size: int, max_draft_tokens: int) -> None:
    """Checks everything that needs no running engine."""
    for name in ("session", "idempotency_key"):
        require(len(getattr(request, name)) <= MAX_NAME, f"must have at most {MAX_NAME} characters", name)
    require(request.prefix_length >= 0, "must not be negative", "prefix_length")
    require(1 <= request.max_tokens < 2**31, "must be in 1..2147483647", "max_tokens")
    drafted = len(request.draft_token_ids)
    require(
        drafted <= max_draft_tokens,
        f"holds {drafted} tokens, at most {max_draft_tokens} are verified",
        "draft_token_ids",
    )
    for name in ("new_token_ids", "draft_token_ids", "stop_token_ids"):
        check_ids(getattr(request, name), vocab_size, name)
    require(len(request.stop) <= MAX_STOPS, f"takes at most {MAX_STOPS} strings", "stop")
    for text in request.stop:
        require(0 < len(text) <= MAX_STOP_LENGTH, f"takes strings of 1 to {MAX_STOP_LENGTH} characters", "stop")
    require(0 <= (request.logprobs or 0) <= MAX_LOGPROBS, f"must be in 0..{MAX_LOGPROBS}", "logprobs")
    check_sampling(request.sampling)


def check_sampling(sampling: Sampling) -> None:
    """Checks the ranges; refuses what vLLM refuses when drafts are verified."""
    # NaN fails every comparison, and so is refused too.
    require(0 <= sampling.temperature <= 2, "must be in 0..2", "sampling.temperature")
    require(0 < sampling.top_p <= 1, "must be above 0 and at most 1", "sampling.top_p")
    require(0 <= sampling.top_k < 2**31, "must be in 0..2147483647", "sampling.top_k")
    for name in ("min_p", "logit_bias"):
        unset = not getattr(sampling, name)
        require(unset, "is not supported: vLLM refuses it beside draft verification", f"sampling.{name}")
    for name in ("presence_penalty", "frequency_penalty"):
        require(-2 <= getattr(sampling, name) <= 2, "must be in -2..2", f"sampling.{name}")
    factor = sampling.repetition_penalty
    require(0 < factor < math.inf, "must be above 0 and finite", "sampling.repetition_penalty")
    require(0 <= sampling.min_tokens < 2**31, "must be in 0..2147483647", "sampling.min_tokens")
    require((sampling.prompt_tokens or 0) >= 0, "must not be negative", "sampling.prompt_tokens")


def check_ids(token_ids: list[int], vocab_size: int, param: str) -> None:
    """Checks that every id is in the vocabulary."""
    if token_ids:
        inside = min(token_ids) >= 0 and max(token_ids) < vocab_size
        require(inside, f"holds ids outside the vocabulary of {vocab_size}", param)


def check_length(characters: int, context_length: int, param: str) -> None:
    """Raises ContextLengthError for a text that is not worth tokenizing: it cannot fit the context."""
    if characters > context_length * LONGEST_TOKEN:
        message = f"{characters} characters do not fit a context of {context_length} tokens"
        raise ContextLengthError(message, param)


def require(holds: bool, message: str, param: str) -> None:
    """Raises RequestError about `param` unless `holds`."""
    if not holds:
        raise RequestError(f"{param} {message}", param=param)
