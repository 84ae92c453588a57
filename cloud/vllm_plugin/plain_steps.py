"""Patch: makes steps without drafts cost what they would without a speculative config.

With such a config vLLM asks its worker after every step for the drafts of its proposer, which never has any here, and
sends every step through the rejection sampler, also those in which nothing can be rejected.
"""

import functools
from typing import Any

from vllm.v1.executor.abstract import Executor
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.worker.gpu_model_runner import GPUModelRunner


def install() -> None:
    """Replaces the executors' `take_draft_token_ids`, and wraps `GPUModelRunner._sample`."""
    for executor in (Executor, MultiprocExecutor, UniProcExecutor):
        executor.take_draft_token_ids = take_draft_token_ids
    with_drafts = GPUModelRunner._sample

    @functools.wraps(with_drafts, assigned=(), updated=())
    def sample(self: GPUModelRunner, logits: Any, spec_decode_metadata: Any) -> Any:
        """Draws a step's tokens; where no request has a draft, `logits` has one row for each request."""
        if spec_decode_metadata is not None and spec_decode_metadata.max_spec_len == 0:
            spec_decode_metadata = None
        return with_drafts(self, logits, spec_decode_metadata)

    GPUModelRunner._sample = sample


def take_draft_token_ids(self: Executor) -> None:
    """Returns no drafts, without asking the worker process."""
