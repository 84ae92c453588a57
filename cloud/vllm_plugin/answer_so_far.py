"""Patch: tells vLLM which prompt tokens of a verify request are the answer so far, as after a preemption.

Penalties count the answer's tokens only, and a schema's grammar must continue where the answer ends; but each round is
a new request, whose tokens are all prompt to vLLM. Both halves of vLLM keep prompt and output apart:
`begin_with_answer` splits the scheduler's request when it arrives, `install` the worker's when it enters the batch.
"""

import functools
from typing import Any

from vllm.v1.request import Request
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from cloud.vllm_plugin.keys import ANSWER_KEY


def begin_with_answer(request: Request) -> None:
    """Turns what follows the prompt of `request` into its output; `max_tokens` still counts from now on."""
    start = _answer_start(request.sampling_params)
    if start is None or request.prompt_token_ids is None or request.num_output_tokens:
        return
    answer = request.prompt_token_ids[start:]
    request.prompt_token_ids = request.prompt_token_ids[:start]
    request.num_prompt_tokens = start
    request._output_token_ids.extend(answer)
    request.max_tokens += len(answer)
    request.prefill_stats = None  # vLLM counts a prefill up to the prompt's end, and checks that it ends there


def install() -> None:
    """Wraps `InputBatch.add_request`: a request that enters a worker's batch for the first time is split."""
    unsplit = InputBatch.add_request

    @functools.wraps(unsplit, assigned=(), updated=())
    def add_request(self: InputBatch, request: CachedRequestState) -> int:
        start = _answer_start(request.sampling_params)
        if start is not None and request.prompt_token_ids is not None and not request.output_token_ids:
            request.output_token_ids.extend(request.prompt_token_ids[start:])
            request.prompt_token_ids = request.prompt_token_ids[:start]
            request.num_prompt_tokens = start
        return int(unsplit(self, request))

    InputBatch.add_request = add_request


def _answer_start(params: Any) -> int | None:
    return (params.extra_args or {}).get(ANSWER_KEY) if params else None
