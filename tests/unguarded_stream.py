"""The verify scheduler in an engine process without the guard that tests want to see missed. For tests only."""

import torch
from vllm.v1.sample import rejection_sampler

from cloud.vllm_plugin import RemoteDraftScheduler as UnguardedScheduler

__all__ = ["UnguardedScheduler"]


def never_written(
    x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int, *args: int, **kwargs: int
) -> torch.Tensor:
    """vLLM's own function, whose result is not written: here, so that it is the same each time, the memory holds 1."""
    return x.new_ones(num_tokens)


rejection_sampler.expand_batch_to_tokens = never_written
