"""Checks a verify request's ranges, sizes and names; raises RequestError with the path of the wrong field."""

import math

from common.errors import RequestError
from common.types import Sampling, VerifyRequest

MAX_NAME = 128
MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_LOGPROBS = 20
MAX_SCHEMA = 65_536


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
    """Checks the ranges; refuses `min_p`, which has no effect in vLLM when drafts are verified."""
    # NaN fails every comparison, and so is refused too.
    require(0 <= sampling.temperature <= 2, "must be in 0..2", "sampling.temperature")
    require(0 < sampling.top_p <= 1, "must be above 0 and at most 1", "sampling.top_p")
    require(0 <= sampling.top_k < 2**31, "must be in 0..2147483647", "sampling.top_k")
    require(sampling.min_p == 0, "is not supported: it has no effect beside draft verification", "sampling.min_p")
    for name in ("presence_penalty", "frequency_penalty"):
        require(-2 <= getattr(sampling, name) <= 2, "must be in -2..2", f"sampling.{name}")
    factor = sampling.repetition_penalty
    require(0 < factor < math.inf, "must be above 0 and finite", "sampling.repetition_penalty")
    require(len(sampling.json_schema or "") <= MAX_SCHEMA, f"is over {MAX_SCHEMA} characters", "sampling.json_schema")
    require((sampling.prompt_tokens or 0) >= 0, "must not be negative", "sampling.prompt_tokens")


def check_ids(token_ids: list[int], vocab_size: int, param: str) -> None:
    """Checks that every id is in the vocabulary."""
    if token_ids:
        inside = min(token_ids) >= 0 and max(token_ids) < vocab_size
        require(inside, f"holds ids outside the vocabulary of {vocab_size}", param)


def require(holds: bool, message: str, param: str) -> None:
    """Raises RequestError about `param` unless `holds`."""
    if not holds:
        raise RequestError(f"{param} {message}", param=param)
