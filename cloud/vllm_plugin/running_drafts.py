"""Gives running requests the newest drafts from their mailboxes, before each of vLLM's steps. Knows no socket format.

The draft was made from an older state of the answer than the one that vLLM has reached, so what counts is what is left
of it: nothing if it contradicts a token generated since. vLLM's own rejection sampler verifies the rest.
"""

from dataclasses import astuple, dataclass, field
from typing import Any

from vllm.v1.request import Request

from cloud.vllm_plugin.mailbox import Address, Inbox, Mailboxes
from common.decoding.draft_length import iid_acceptance, worth_verifying
from common.protocol.prefix_hash import common_prefix

MAILBOX_KEY = "mailbox"
PROGRESS_KEY = "drafts"
MEMORY = 0.9
"""What a step leaves of the weight of those before it."""
PROBE_STEPS = 8
"""A request whose drafts are never right has one token of one verified as seldom as this."""


@dataclass(slots=True)
class DraftProgress:
    """One request so far: engine steps that drew tokens, draft tokens verified and accepted, drafts dropped unused."""

    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    dropped: int = 0


@dataclass(slots=True)
class Box:
    """One request's mailbox, what came of its drafts, and how often a token of them was right lately."""

    address: Address
    progress: DraftProgress = field(default_factory=DraftProgress)
    right: float = 3.0
    wrong: float = 0.3
    refused: int = 0

    def allowance(self, most: int) -> int:
        """How many tokens of its next draft to verify: bad drafts must not slow down the step for everyone."""
        length = worth_verifying(iid_acceptance(self.right / (self.right + self.wrong)), most)
        if length == 0:
            self.refused += 1
            return int(self.refused % PROBE_STEPS == 0)
        return length

    def learn(self, drafted: int, accepted: int) -> None:
        if drafted:
            self.right = self.right * MEMORY + accepted
            self.wrong = self.wrong * MEMORY + (accepted < drafted)


class RunningDrafts:
    """The part of a scheduler that serves requests with a mailbox; all calls come from the engine's own loop."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._inboxes: dict[str, Inbox] = {}
        self._boxes: dict[str, Box] = {}

    def open(self, request: Request) -> None:
        """Opens the mailbox that a new request names, if it names one."""
        named = _named(request)
        if named is None:
            return
        if named.socket not in self._inboxes:
            vocab_size = self._scheduler.vllm_config.model_config.get_vocab_size()
            self._inboxes[named.socket] = Inbox(named.socket, self._scheduler.max_model_len, vocab_size)
        self._boxes[request.request_id] = Box(named)
        self._inboxes[named.socket].open(named.key)

    def offer(self) -> None:
        """Makes each draft that still fits its request's next step, within what the step has room for."""
        if not self._boxes:
            return
        self._close_finished()
        for inbox in self._inboxes.values():
            inbox.receive(report=not self._boxes)  # after the last one there may be no step for a long time
        running = self._scheduler.running
        # Every running request gets its own token before any gets a draft; requests that prefill take what is left.
        room = self._scheduler.max_num_scheduled_tokens - len(running)
        for request in running:
            if request.request_id in self._boxes and request.num_computed_tokens == request.num_tokens - 1:
                request.spec_token_ids = self._draft(request, room)
                room -= len(request.spec_token_ids)

    def report(self, scheduled: Any, outputs: dict[int, Any]) -> None:
        """Lets the outputs of a step carry their requests' progress to the front end.

        In vLLM's field for KV connectors: outputs that are merged on their way keep the last one's, so it counts from
        the beginning. A number that travelled on another way could not be matched with its tokens.
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
        most = min(room, self._scheduler.num_spec_tokens, left - 1, context - 1)
        if most <= 0:
            return []
        draft = self._mailboxes(box).take(box.address.key, request.all_token_ids)
        if draft:
            draft = draft[: box.allowance(most)]
        return list(self._scheduler.structured_output_manager.validate_tokens(request, draft)) if draft else []

    def _count(self, output: Any, draft: list[int]) -> DraftProgress:
        box, drawn = self._boxes[output.request_id], output.new_token_ids
        accepted = common_prefix(drawn, draft)  # a recovered token always differs from the draft's
        box.learn(len(draft), accepted)
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


def _named(request: Request) -> Address | None:
    params = request.sampling_params
    named = (params.extra_args or {}).get(MAILBOX_KEY) if params else None
    return Address(*named) if named else None
