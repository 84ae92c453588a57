"""Checks the sampling settings of a split model's token requests."""

import math

from cloud.verify.validation import require
from common.types import Sampling

NEEDS_TOKENS = "needs tokens, which a split model's cloud does not see"


def check_sampling(sampling: Sampling) -> None:
    """Raises RequestError for what vLLM would refuse, and for what depends on tokens: this cloud gets hidden states."""
    require(0 <= sampling.temperature <= 2, "must be in 0..2", "sampling.temperature")
    require(0 < sampling.top_p <= 1, "must be above 0 and at most 1", "sampling.top_p")
    require(0 <= sampling.top_k < 2**31, "must be in 0..2147483647", "sampling.top_k")
    require(0 <= sampling.min_p <= 1, "must be in 0..1", "sampling.min_p")
    for name, off in (("presence_penalty", 0), ("frequency_penalty", 0), ("repetition_penalty", 1)):
        require(getattr(sampling, name) == off, NEEDS_TOKENS, f"sampling.{name}")
    for token, bias in sampling.logit_bias:
        require(0 <= token < 2**31 and math.isfinite(bias), "takes token ids and finite numbers", "sampling.logit_bias")
    require(sampling.grammar is None, NEEDS_TOKENS, "sampling.grammar")
