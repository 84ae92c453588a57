"""Lets each round of a live vLLM request begin with its own seed. Knows nothing of drafts or sessions.

vLLM's worker makes a request's generator when it first sees the request. A live request's rounds would go on with the
first one's; with this, each draws what a request of the round's own would.
"""

import torch
from vllm.sampling_params import SamplingType
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from cloud.vllm_plugin.cpu_guards import RewindingGenerator


def install() -> None:
    """In this process, let requests that enter a worker's batch begin with the seed that they now have."""
    before = InputBatch.add_request

    def add_request(self: InputBatch, request: CachedRequestState) -> int:
        params = request.sampling_params
        if params is not None and not request.output_token_ids:  # else it was put aside in the middle of its round
            request.generator = None
            if params.sampling_type == SamplingType.RANDOM_SEED:
                request.generator = _generator(self.device)
                request.generator.manual_seed(params.seed)
        if isinstance(request.generator, RewindingGenerator):
            request.generator.mark()
        return int(before(self, request))

    InputBatch.add_request = add_request


def _generator(device: torch.device) -> torch.Generator:
    return RewindingGenerator() if torch.device(device).type == "cpu" else torch.Generator(device=device)
