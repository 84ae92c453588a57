"""Checks that this vLLM was tested with the scheduler plugin, and has what the plugin hooks into."""

import logging

import vllm
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.executor.abstract import Executor
from vllm.v1.sample import rejection_sampler
from vllm.v1.worker.gpu_input_batch import InputBatch
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from common.errors import StartError

TESTED = ("0.32.0",)
HOOKS: dict[object, tuple[str, ...]] = {
    Scheduler: ("schedule", "add_request", "_update_after_schedule", "_update_request_with_output"),
    InputBatch: ("add_request",),
    Executor: ("take_draft_token_ids",),
    GPUModelRunner: ("_sample",),
    rejection_sampler: ("expand_batch_to_tokens", "apply_top_k_top_p"),
}
"""What the plugin overrides or replaces; without one of these, drafts would silently not be verified."""

log = logging.getLogger(__name__)


def check(version: str = vllm.__version__, hooks: dict[object, tuple[str, ...]] = HOOKS) -> None:
    """Logs a warning for a version that was not tested; raises StartError for one that lacks a hook."""
    tested = f"tested: {', '.join(TESTED)}"
    for place, names in hooks.items():
        if missing := [name for name in names if not hasattr(place, name)]:
            where = getattr(place, "__name__", place)
            raise StartError(f"vLLM {version} has no {where}.{missing[0]}, which verifying drafts needs ({tested})")
    if version.partition("+")[0] not in TESTED:
        log.warning("vLLM %s was not tested with this project (%s): run its tests before trusting it", version, tested)
