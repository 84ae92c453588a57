"""Makes vLLM's steps without drafts cost what they would without a speculative config. Knows nothing of requests.

With such a config vLLM asks its worker after every step for the drafts of its proposer, which has none here, and sends
every step through the rejection sampler, also those in which nothing can be rejected.
"""

from typing import Any

from vllm.v1.executor.abstract import Executor
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

sample_with_drafts = GPUModelRunner._sample


def take_draft_token_ids(self: Executor) -> None:
    """Nothing, without asking another process."""


def sample(self: GPUModelRunner, logits: Any, spec_decode_metadata: Any) -> Any:
    """Draw a step's tokens; where no request has a draft, `logits` has one row for each, as in any other vLLM."""
    if spec_decode_metadata is not None and spec_decode_metadata.max_spec_len == 0:
        spec_decode_metadata = None
    return sample_with_drafts(self, logits, spec_decode_metadata)


def install() -> None:
    """In this process."""
    for executor in (Executor, MultiprocExecutor, UniProcExecutor):
        executor.take_draft_token_ids = take_draft_token_ids
    GPUModelRunner._sample = sample
