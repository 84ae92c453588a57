"""The scheduler and proposer that vLLM imports inside its engine processes to verify drafts made on edges.

A draft travels in `SamplingParams.extra_args[DRAFT_KEY]`. The scheduler puts it into the step in which the request's
prefill ends, as if a local proposer had made it; vLLM's own rejection sampler does the rest. Where the answer so far
matters (penalties, a schema), `extra_args[ANSWER_KEY]` says how many of the prompt's tokens come before it.
A running generation takes its drafts, step by step, from the mailbox that `extra_args[MAILBOX_KEY]` names.
Importing this module installs the patches: in vLLM's worker processes `NoProposer` is what is imported.
"""

from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request, RequestStatus

from cloud.vllm_plugin import patches
from cloud.vllm_plugin.announced_steps import AnnouncingScheduler
from cloud.vllm_plugin.answer_so_far import begin_with_answer
from cloud.vllm_plugin.keys import DRAFT_KEY
from cloud.vllm_plugin.running_drafts import RunningDrafts

patches.install()


class NoProposer:
    """The proposer that a speculative config must name; it proposes nothing, because drafts come with requests."""

    def __init__(self, vllm_config: object) -> None:
        """vLLM passes its config, which is not needed."""

    def load_model(self, *args: object, **kwargs: object) -> None:
        """Does nothing: there is no draft model."""

    def propose(self, sampled_token_ids: list[list[int]], *args: object, **kwargs: object) -> list[list[int]]:
        """One empty draft for each request of the step."""
        return [[] for _ in sampled_token_ids]


class RemoteDraftScheduler(AnnouncingScheduler):
    """vLLM's scheduler, which verifies the draft that a request carries in the step that ends its prefill.

    A request with a draft ends after that step, also when a rejection leaves it fewer tokens than `max_tokens`, which
    is the draft's length plus 1. Any other request continues as usual.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # KV slots past the scheduled tokens, for the draft's keys and values.
        self.num_lookahead_tokens: int = max(self.vllm_config.num_lookahead_tokens, self.num_spec_tokens)
        self.running_drafts = RunningDrafts(self)

    def add_request(self, request: Request) -> None:
        begin_with_answer(request)
        self.running_drafts.open(request)
        super().add_request(request)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self.running_drafts.offer()
        return super().schedule(throttle_prefills)

    def update_from_output(self, scheduler_output: SchedulerOutput, *args: Any, **kwargs: Any) -> dict[int, Any]:
        outputs = super().update_from_output(scheduler_output, *args, **kwargs)
        self.running_drafts.report(scheduler_output, outputs)
        return outputs

    def shutdown(self) -> None:
        self.running_drafts.shutdown()
        super().shutdown()

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        _drop_padding(scheduler_output)
        self._advance_grammars(scheduler_output)
        room = self.scheduler_config.max_num_batched_tokens - scheduler_output.total_num_scheduled_tokens
        for request_id, scheduled in scheduler_output.num_scheduled_tokens.items():
            request = self.requests[request_id]
            draft = _extra(request).get(DRAFT_KEY, [])
            end = request.num_computed_tokens + scheduled
            # Preemption repeats a prefill; a verify ends with its first output, so this is the draft's step.
            if not draft or end != request.num_tokens:
                continue
            # A longer step than max_num_batched_tokens ends the engine; one token must still fit behind the draft.
            draft = draft[: max(0, min(room, self.num_spec_tokens, self.max_model_len - end - 1))]
            draft = self.structured_output_manager.validate_tokens(request, draft)
            if draft:
                room -= len(draft)
                _schedule(scheduler_output, request_id, draft)
        super()._update_after_schedule(scheduler_output)

    def _advance_grammars(self, scheduler_output: SchedulerOutput) -> None:
        """Moves the grammars of new requests, which begin at their start, to where the answers so far end."""
        for new in scheduler_output.scheduled_new_reqs:
            request = self.requests[new.req_id]
            if request.num_output_tokens:
                new.prompt_token_ids = list(request.all_token_ids)  # with the answer, which the worker has not seen
                if request.use_structured_output:
                    request.structured_output_request.grammar.accept_tokens(new.req_id, list(request.output_token_ids))

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        new_token_ids, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
        if not stopped and DRAFT_KEY in _extra(request):
            request.status = RequestStatus.FINISHED_LENGTH_CAPPED
            stopped = True
        return new_token_ids, stopped


def _extra(request: Request) -> dict[str, Any]:
    params = request.sampling_params
    return (params.extra_args or {}) if params else {}


def _schedule(output: SchedulerOutput, request_id: str, draft: list[int]) -> None:
    output.scheduled_spec_decode_tokens[request_id] = draft
    output.num_scheduled_tokens[request_id] += len(draft)
    output.total_num_scheduled_tokens += len(draft)


def _drop_padding(output: SchedulerOutput) -> None:
    """Removes the drafts of -1 that vLLM adds to a request whose prompt was cached except for one token.

    They keep the shape of a captured CUDA graph; the CPU has none, and they would take the place of a real draft.
    """
    for request_id, draft in list(output.scheduled_spec_decode_tokens.items()):
        if draft[0] == -1:
            del output.scheduled_spec_decode_tokens[request_id]
            output.num_scheduled_tokens[request_id] -= len(draft)
            output.total_num_scheduled_tokens -= len(draft)
