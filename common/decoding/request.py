"""What one request asks the pipeline for, resolved once and frozen."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.decoding.policy import Plan
from common.types import Sampling


@dataclass(frozen=True, slots=True)
class DecodingRequest:
    """`prompt`: token ids in the vocabulary of the answer. `max_tokens`: of the answer, the end token included."""

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling
    plan: Plan
