"""Patch: each round of a live vLLM request begins with its own seed.

vLLM's worker makes a request's generator when it first sees the request, and the later rounds of a live request would
continue with it. With this patch each round draws what a request for this round alone would.
"""

import functools

import torch
from vllm.sampling_params import SamplingType
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from cloud.vllm_plugin.cpu_guards import RewindingGenerator


def install() -> None:
    """Wraps `InputBatch.add_request`: a request that enters a worker's batch begins with the seed that it now has."""
    unseeded = InputBatch.add_request

    @functools.wraps(unseeded, assigned=(), updated=())
    def add_request(self: InputBatch, request: CachedRequestState) -> int:
        params = request.sampling_params
        if params is not None and not request.output_token_ids:  # with output it was preempted within its round
            request.generator = None
            if params.sampling_type == SamplingType.RANDOM_SEED:
                request.generator = _generator(self.device)
                request.generator.manual_seed(params.seed)
        if isinstance(request.generator, RewindingGenerator):
            request.generator.mark()
        return int(unseeded(self, request))

    InputBatch.add_request = add_request


def _generator(device: torch.device) -> torch.Generator:
    return RewindingGenerator() if torch.device(device).type == "cpu" else torch.Generator(device=device)
