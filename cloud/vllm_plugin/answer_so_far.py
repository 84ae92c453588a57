"""Tells vLLM which of a verify's prompt tokens are the answer so far, as after a preemption. Knows nothing of drafts.

Penalties count the answer's tokens only, and a schema's grammar must go on where the answer is; but each round is a new
request, to vLLM all prompt. Both its halves keep prompt and output apart: the scheduler's request is split when it
arrives (`begin_with_answer`), the worker's when it enters the batch (`install`).
"""

from typing import Any

from vllm.v1.request import Request
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

ANSWER_KEY = "answer_start"

unsplit_add_request = InputBatch.add_request


def begin_with_answer(request: Request) -> None:
    """Make what follows the prompt of `request` its output; `max_tokens` still counts from now on."""
    start = _answer_start(request.sampling_params)
    if start is None or request.prompt_token_ids is None or request.num_output_tokens:
        return
    answer = request.prompt_token_ids[start:]
    request.prompt_token_ids = request.prompt_token_ids[:start]
    request.num_prompt_tokens = start
    request._output_token_ids.extend(answer)
    request.max_tokens += len(answer)
    request.prefill_stats = None  # vLLM counts a prefill up to the prompt's end, and checks that it ends there


def add_request(self: InputBatch, request: CachedRequestState) -> int:
    """Split a request that enters the worker's batch for the first time."""
    start = _answer_start(request.sampling_params)
    if start is not None and request.prompt_token_ids is not None and not request.output_token_ids:
        request.output_token_ids.extend(request.prompt_token_ids[start:])
        request.prompt_token_ids = request.prompt_token_ids[:start]
        request.num_prompt_tokens = start
    return int(unsplit_add_request(self, request))


def install() -> None:
    """In this process, let requests enter a worker's batch split."""
    InputBatch.add_request = add_request


def _answer_start(params: Any) -> int | None:
    return (params.extra_args or {}).get(ANSWER_KEY) if params else None
