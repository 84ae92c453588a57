"""How much of each draft a step verifies: bounded by the step's room, the request's end and the draft's acceptance."""

from types import SimpleNamespace
from typing import Any

import pytest

from cloud.vllm_plugin import running_drafts
from cloud.vllm_plugin.draft_messages import Address
from cloud.vllm_plugin.keys import MAILBOX_KEY, PROGRESS_KEY
from cloud.vllm_plugin.mailbox import Mailboxes
from cloud.vllm_plugin.running_drafts import RunningDrafts
from common.decoding.draft_yield import VERIFY_COST, iid_acceptance, stream_draft_length, worth_verifying


class FakeInbox:
    """An inbox that tests fill by hand."""

    def __init__(self, socket: str, max_position: int, vocab_size: int) -> None:
        self.mailboxes = Mailboxes()

    def open(self, key: bytes) -> None:
        assert self.mailboxes.open(key)

    def receive(self, report: bool = False) -> None:
        pass


def request(n: int, tokens: int = 10, computed: int | None = None, left: int = 100, mailbox: bool = True) -> Any:
    extra = {MAILBOX_KEY: ["ipc://somewhere", bytes([n])]} if mailbox else None
    return SimpleNamespace(
        request_id=str(n),
        sampling_params=SimpleNamespace(extra_args=extra),
        num_tokens=tokens,
        num_computed_tokens=tokens - 1 if computed is None else computed,
        all_token_ids=[7] * tokens,
        max_tokens=left,
        num_output_tokens=0,
        spec_token_ids=[],
    )


def scheduler(running: list[Any], step_tokens: int = 100, context: int = 1000) -> Any:
    return SimpleNamespace(
        running=running,
        max_num_scheduled_tokens=step_tokens,
        max_model_len=context,
        num_spec_tokens=16,
        finished_req_ids=set(),
        structured_output_manager=SimpleNamespace(validate_tokens=lambda request, tokens: tokens),
        vllm_config=SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 100)),
    )


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_drafts, "Inbox", FakeInbox)


def offered(scheduler: Any, length: int = 40) -> list[int]:
    """The length of the draft that each running request gets when all have one of `length` that fits."""
    drafts = RunningDrafts(scheduler)
    for one in scheduler.running:
        drafts.open(one)
        if one.sampling_params.extra_args:
            key = Address(*one.sampling_params.extra_args[MAILBOX_KEY]).key
            drafts._inboxes["ipc://somewhere"].mailboxes.put(key, 10, [5] * length)
    drafts.offer()
    return [len(one.spec_token_ids) for one in scheduler.running]


def test_every_running_request_keeps_its_own_token_whatever_the_others_draft() -> None:
    running = [request(n) for n in range(30)]
    lengths = offered(scheduler(running, step_tokens=64))
    assert sum(lengths) == 64 - 30
    assert max(lengths) <= 16


def test_a_request_without_a_mailbox_or_still_in_its_prefill_gets_no_draft() -> None:
    assert offered(scheduler([request(0, mailbox=False), request(1, computed=4), request(2)])) == [0, 0, 16]


@pytest.mark.parametrize(("left", "context", "length"), [(4, 1000, 3), (1, 1000, 0), (100, 13, 2), (100, 11, 0)])
def test_a_draft_ends_before_its_request_or_the_context_does(left: int, context: int, length: int) -> None:
    assert offered(scheduler([request(0, left=left)], context=context)) == [length]


def step(drafts: RunningDrafts, one: Any, drawn: list[int]) -> Any:
    """One step of a request that draws `drawn`; returns the progress in its output."""
    output = SimpleNamespace(request_id=one.request_id, new_token_ids=drawn, kv_transfer_params=None)
    scheduled = SimpleNamespace(scheduled_spec_decode_tokens={one.request_id: one.spec_token_ids})
    drafts.report(scheduled, {0: SimpleNamespace(outputs=[output])})
    return output.kv_transfer_params[PROGRESS_KEY]


def test_an_output_carries_the_progress_of_its_drafts() -> None:
    one = request(0)
    made = scheduler([one])
    drafts = RunningDrafts(made)
    drafts.open(one)
    mailboxes = drafts._inboxes["ipc://somewhere"].mailboxes
    mailboxes.put(b"\0", 10, [5, 6, 8])
    drafts.offer()
    assert step(drafts, one, [5, 6, 9]) == (1, 3, 2, 0)
    mailboxes.put(b"\0", 0, [1])
    drafts.offer()
    one.spec_token_ids = []
    assert step(drafts, one, [4]) == (2, 3, 2, 1)
    made.finished_req_ids = {"0"}
    drafts.offer()
    assert len(mailboxes) == 0
    assert (mailboxes.counters.drafted, mailboxes.counters.accepted) == (3, 2)


def test_drafts_that_are_never_right_are_not_verified_until_they_are_right_again() -> None:
    one = request(0)
    drafts = RunningDrafts(scheduler([one]))
    drafts.open(one)
    mailboxes = drafts._inboxes["ipc://somewhere"].mailboxes

    def lengths(steps: int, right: bool) -> list[int]:
        found = []
        for _ in range(steps):
            one.spec_token_ids = []
            mailboxes.put(b"\0", 10, [5] * 16)
            drafts.offer()
            found.append(len(one.spec_token_ids))
            step(drafts, one, [*one.spec_token_ids, 3] if right else [3])
        return found

    wrong = lengths(100, right=False)
    assert wrong[0] == 16
    assert sum(wrong[50:]) < 50 / 4
    assert any(wrong[50:])
    assert lengths(100, right=True)[-1] == 16


def test_a_token_is_verified_while_its_acceptance_exceeds_its_cost() -> None:
    for acceptance in (0.1, 0.5, 0.75, 0.9, 0.99):
        length = worth_verifying(iid_acceptance(acceptance), 1000)
        assert acceptance**length > VERIFY_COST >= acceptance ** (length + 1)
    assert worth_verifying(iid_acceptance(1.0), 16) == 16
    assert worth_verifying(iid_acceptance(0.0), 16) == worth_verifying(iid_acceptance(VERIFY_COST), 16) == 0


def test_a_draft_covers_the_tokens_in_flight_and_grows_with_its_acceptance() -> None:
    lengths = [stream_draft_length(iid_acceptance(acceptance), 4, 128) for acceptance in (0.5, 0.75, 0.85, 0.93, 1.0)]
    assert lengths == sorted(lengths)
    assert lengths[-1] == 4 + 16
    assert stream_draft_length(iid_acceptance(1.0), 200, 128) == 128


def test_a_draft_that_will_be_contradicted_on_its_way_is_not_sent() -> None:
    assert stream_draft_length(iid_acceptance(0.75), 2, 128) > 0
    assert stream_draft_length(iid_acceptance(0.75), 30, 128) == 0
    assert stream_draft_length(iid_acceptance(0.0), 0, 128) == 0
