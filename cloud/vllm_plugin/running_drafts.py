"""Gives running requests the newest drafts from their mailboxes, before each of vLLM's steps.

A draft was made from an older state of the answer than vLLM has reached. If it contradicts a token generated since, it
is dropped; if not, vLLM's own rejection sampler verifies the tokens that are still ahead.
"""

from dataclasses import astuple, dataclass, field
from typing import Any

from vllm.v1.request import Request

from cloud.vllm_plugin.draft_messages import Address, DraftProgress
from cloud.vllm_plugin.keys import MAILBOX_KEY, PROGRESS_KEY
from cloud.vllm_plugin.mailbox import Inbox, Mailboxes
from common.decoding.draft_yield import iid_acceptance, worth_verifying
from common.protocol.prefix_hash import common_prefix

MEMORY = 0.9
"""Factor by which each step reduces the weight of the steps before it."""
PROBE_STEPS = 8
"""A request whose drafts are not worth verifying has one draft token verified in every so many steps."""


@dataclass(slots=True)
class Box:
    """One request's mailbox, the progress of its drafts, and its recent counts of right and wrong draft tokens."""

    address: Address
    progress: DraftProgress = field(default_factory=DraftProgress)
    right: float = 3.0
    wrong: float = 0.3
    refused: int = 0

    def allowance(self, limit: int) -> int:
        """How many tokens of its next draft to verify, at most `limit`; bad drafts must not slow down others' steps."""
        length = worth_verifying(iid_acceptance(self.right / (self.right + self.wrong)), limit)
        if length == 0:
            self.refused += 1
            return int(self.refused % PROBE_STEPS == 0)
        return length

    def record(self, drafted: int, accepted: int) -> None:
        """Takes one step's counts into `allowance`."""
        if drafted:
            self.right = self.right * MEMORY + accepted
            self.wrong = self.wrong * MEMORY + (accepted < drafted)


class RunningDrafts:
    """The part of a scheduler that serves requests with a mailbox. Called from the engine's own loop only."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._inboxes: dict[str, Inbox] = {}
        self._boxes: dict[str, Box] = {}

    def open(self, request: Request) -> None:
        """Opens the mailbox of a new request, if it names one."""
        address = _address(request)
        if address is None:
            return
        if address.socket not in self._inboxes:
            vocab_size = self._scheduler.vllm_config.model_config.get_vocab_size()
            self._inboxes[address.socket] = Inbox(address.socket, self._scheduler.max_model_len, vocab_size)
        self._boxes[request.request_id] = Box(address)
        self._inboxes[address.socket].open(address.key)

    def offer(self) -> None:
        """Before a step: gives each request whose draft still fits its next tokens, within the step's room."""
        if not self._boxes:
            return
        self._close_finished()
        for inbox in self._inboxes.values():
            inbox.receive(report=not self._boxes)  # after the last request there may be no step for a long time
        running = self._scheduler.running
        # Every running request gets its own token before any gets a draft; prefills take what is left.
        room = self._scheduler.max_num_scheduled_tokens - len(running)
        for request in running:
            if request.request_id in self._boxes and request.num_computed_tokens == request.num_tokens - 1:
                request.spec_token_ids = self._draft(request, room)
                room -= len(request.spec_token_ids)

    def report(self, scheduled: Any, outputs: dict[int, Any]) -> None:
        """After a step: its outputs carry their requests' progress to the web server.

        It travels in vLLM's field for KV connectors, with the tokens that it counts. vLLM keeps only the last output's
        field when it merges outputs, so the counts are totals.
        """
        if not self._boxes:
            return
        for group in outputs.values():
            for output in group.outputs:
                if output.request_id in self._boxes:
                    progress = self._count(output, scheduled.scheduled_spec_decode_tokens.get(output.request_id, []))
                    output.kv_transfer_params = {**(output.kv_transfer_params or {}), PROGRESS_KEY: astuple(progress)}

    def shutdown(self) -> None:
        for inbox in self._inboxes.values():
            inbox.close()

    def _draft(self, request: Request, room: int) -> list[int]:
        box = self._boxes[request.request_id]
        left = request.max_tokens - request.num_output_tokens
        context = self._scheduler.max_model_len - request.num_tokens
        # A step draws one token beyond its draft.
        limit = min(room, self._scheduler.num_spec_tokens, left - 1, context - 1)
        if limit <= 0:
            return []
        draft = self._mailboxes(box).take(box.address.key, request.all_token_ids)
        if draft:
            draft = draft[: box.allowance(limit)]
        return list(self._scheduler.structured_output_manager.validate_tokens(request, draft)) if draft else []

    def _count(self, output: Any, draft: list[int]) -> DraftProgress:
        box, drawn = self._boxes[output.request_id], output.new_token_ids
        accepted = common_prefix(drawn, draft)  # a recovered token always differs from the draft's
        box.record(len(draft), accepted)
        progress = box.progress
        progress.steps += bool(drawn)
        progress.drafted += len(draft)
        progress.accepted += accepted
        mailboxes = self._mailboxes(box)
        mailboxes.counters.drafted += len(draft)
        mailboxes.counters.accepted += accepted
        progress.dropped = mailboxes.dropped(box.address.key)
        return progress

    def _mailboxes(self, box: Box) -> Mailboxes:
        return self._inboxes[box.address.socket].mailboxes

    def _close_finished(self) -> None:
        for request_id in self._scheduler.finished_req_ids & self._boxes.keys():
            box = self._boxes.pop(request_id)
            self._mailboxes(box).close(box.address.key)


def _address(request: Request) -> Address | None:
    params = request.sampling_params
    fields = (params.extra_args or {}).get(MAILBOX_KEY) if params else None
    return Address(*fields) if fields else None
