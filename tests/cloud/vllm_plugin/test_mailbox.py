"""Mailboxes are bounded in number, bytes and age; drafts taken agree with the answer; drafts dropped are counted."""

import asyncio
import random
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from cloud.verify.draft_channel import DraftChannel, Sender
from cloud.vllm_plugin.draft_messages import Counters, DraftMessage
from cloud.vllm_plugin.mailbox import Inbox, Mailboxes
from tests.support.manual_clock import ManualClock

KEY = b"k" * 16
BYTES_PER_ID = 4


def boxes(**limits: float) -> Mailboxes:
    made = Mailboxes(**limits)  # type: ignore[arg-type]
    made.open(KEY)
    return made


def test_a_draft_is_taken_from_where_the_answer_ends() -> None:
    box = boxes()
    box.put(KEY, 3, [13, 14, 15, 16])
    assert box.take(KEY, [10, 11, 12]) == [13, 14, 15, 16]
    assert box.take(KEY, [10, 11, 12, 13, 14]) == [15, 16]
    assert box.counters == Counters(taken=1)


def test_an_early_draft_waits_for_its_time() -> None:
    box = boxes()
    box.put(KEY, 3, [13, 14])
    assert box.take(KEY, [10, 11]) == []
    assert box.take(KEY, [10, 11, 12]) == [13, 14]


@pytest.mark.parametrize(
    ("position", "draft"),
    [(1, [11, 99, 13]), (0, [99, 11, 12, 13]), (0, [10, 11, 12]), (1, [11, 12]), (0, [10])],
    ids=["wrong", "wrong at once", "just passed", "passed", "long passed"],
)
def test_a_draft_that_the_answer_contradicted_or_passed_is_late(position: int, draft: list[int]) -> None:
    box = boxes()
    box.put(KEY, position, draft)
    assert box.take(KEY, [10, 11, 12]) == []
    assert (box.counters, box.dropped(KEY), box.bytes) == (Counters(late=1), 1, 0)


def test_a_draft_that_was_used_is_not_late_when_it_is_contradicted_later() -> None:
    box = boxes()
    box.put(KEY, 0, [10, 11, 12])
    assert box.take(KEY, [10]) == [11, 12]
    assert box.take(KEY, [10, 99]) == []
    assert box.counters == Counters(taken=1)


def test_the_newest_draft_replaces_the_one_before_it() -> None:
    box = boxes()
    box.put(KEY, 0, [1, 2, 3])
    box.put(KEY, 0, [7, 8])
    assert box.take(KEY, []) == [7, 8]
    assert (box.counters, box.bytes) == (Counters(taken=1), 2 * BYTES_PER_ID)


def test_a_draft_for_a_mailbox_that_is_not_open_is_foreign() -> None:
    box = boxes()
    box.put(b"other", 0, [1])
    box.close(KEY)
    box.put(KEY, 0, [1])
    assert box.take(KEY, []) == []
    assert box.counters == Counters(foreign=2)


def test_closing_frees_an_unused_draft_and_counts_it() -> None:
    box = boxes()
    box.put(KEY, 5, [1])
    box.close(KEY)
    box.close(KEY)
    assert (box.counters, box.bytes, len(box)) == (Counters(late=1), 0, 0)


def test_there_are_never_more_mailboxes_than_allowed() -> None:
    box = Mailboxes(max_boxes=3)
    keys = [bytes([n]) for n in range(5)]
    assert [box.open(key) for key in keys] == [True, True, True, False, False]
    box.close(keys[0])
    assert box.open(keys[4])
    box.put(keys[3], 0, [1])
    assert box.counters == Counters(foreign=1)


def test_drafts_beyond_the_bytes_are_refused_until_there_is_room() -> None:
    box = Mailboxes(max_bytes=4 * BYTES_PER_ID)
    for key in (b"a", b"b"):
        box.open(key)
    box.put(b"a", 0, [1, 2, 3])
    box.put(b"b", 0, [1, 2])
    assert (box.take(b"b", []), box.counters.full) == ([], 1)
    box.put(b"a", 0, [1])
    box.put(b"b", 0, [1, 2])
    assert (box.take(b"b", []), box.counters.full) == ([1, 2], 1)


def test_an_old_draft_is_dropped_whether_it_is_asked_for_or_not() -> None:
    clock = ManualClock()
    box = Mailboxes(max_age=10, clock=clock)
    for key in (b"a", b"b"):
        box.open(key)
    box.put(b"a", 0, [1])
    clock.now = 9
    assert box.take(b"a", []) == [1]
    box.put(b"b", 0, [1])
    clock.now = 19.5
    assert box.take(b"b", []) == []
    box.put(b"b", 0, [2])
    assert (box.bytes, box.counters) == (BYTES_PER_ID, Counters(taken=1, late=1))


def test_thousands_of_mailboxes_stay_within_their_bounds() -> None:
    rng, clock = random.Random(1), ManualClock()
    box = Mailboxes(max_boxes=2000, max_bytes=50_000, max_age=5, clock=clock)
    opened: set[bytes] = set()
    put = 0
    for _ in range(30_000):
        clock.now += 0.001
        key = rng.randrange(4000).to_bytes(2, "little")
        match rng.randrange(8):
            case 0:
                if key not in opened and box.open(key):
                    opened.add(key)
            case 1:
                box.close(key)
                opened.discard(key)
            case 2:
                box.take(key, [1] * rng.randrange(8))
            case _:
                put += 1
                box.put(key, rng.randrange(4), [1] * rng.randrange(1, 64))
        assert len(box) == len(opened) <= 2000
        assert 0 <= box.bytes <= 50_000
    counters = box.counters
    assert min(counters.taken, counters.late, counters.foreign, counters.full) > 0
    assert counters.taken + counters.late + counters.foreign + counters.full <= put
    for key in opened:
        box.close(key)
    assert (len(box), box.bytes) == (0, 0)


async def arrives(inbox: Inbox, holds: Callable[[], object]) -> None:
    """Reads messages, as the scheduler does, until the condition holds."""
    async with asyncio.timeout(10):
        while not holds():
            inbox.receive()
            await asyncio.sleep(0.001)


async def connected(sender: Sender) -> bytes:
    """The engine that has the mailbox of `sender`, once it has reported so."""
    async with asyncio.timeout(10):
        while sender.engine is None:
            await asyncio.sleep(0.001)
    return sender.engine


async def test_drafts_pass_from_a_stream_to_the_mailbox_of_its_request() -> None:
    async with DraftChannel() as channel:
        inbox = Inbox(channel.address, max_position=100, vocab_size=50)
        with channel.sender() as first, channel.sender() as second:
            first.send(3, [7])  # before the engine has the request: the newest draft is held
            first.send(4, [8, 9])
            inbox.open(first.address.key)
            inbox.open(second.address.key)
            await arrives(inbox, lambda: inbox.mailboxes.take(first.address.key, [0, 1, 2, 3]) == [8, 9])
            second.send(0, [1])
            await arrives(inbox, lambda: inbox.mailboxes.take(second.address.key, []) == [1])
            assert inbox.mailboxes.take(first.address.key, [0, 1, 2, 3]) == [8, 9]
        inbox.close()


async def test_an_engines_counts_reach_the_web_server() -> None:
    async with DraftChannel() as channel:
        inbox = Inbox(channel.address, max_position=100, vocab_size=50)
        with channel.sender() as sender:
            inbox.open(sender.address.key)
            await connected(sender)
            bad = [(100, [1]), (-1, [1]), (0, []), (0, [50]), (0, [-1])]
            for position, token_ids in bad:
                sender.send(position, token_ids)
            await arrives(inbox, lambda: channel.counters.malformed == len(bad))
            inbox.mailboxes.close(sender.address.key)
            sender.send(0, [1])
            await arrives(inbox, lambda: channel.counters == Counters(malformed=len(bad), foreign=1))
        inbox.close()


@pytest.mark.parametrize(
    "message", [b"", b"\xc1", b"\x90" * 9, msgspec.msgpack.encode(DraftMessage(KEY, 0, [1])) + b"x"]
)
async def test_bytes_that_are_no_draft_are_counted_as_malformed(message: bytes) -> None:
    async with DraftChannel() as channel:
        inbox = Inbox(channel.address, max_position=100, vocab_size=50)
        with channel.sender() as sender:
            inbox.open(sender.address.key)
            channel.forward(await connected(sender), message)
            await arrives(inbox, lambda: inbox.mailboxes.counters.malformed)
            assert inbox.mailboxes.counters == Counters(malformed=1)
        inbox.close()


async def test_an_engine_that_does_not_read_delays_nobody() -> None:
    async with DraftChannel() as channel:
        inbox = Inbox(channel.address, max_position=100, vocab_size=50)
        with channel.sender() as sender:
            inbox.open(sender.address.key)
            async with asyncio.timeout(60):
                while not channel.counters.full:
                    for _ in range(1000):
                        sender.send(0, [1])
                    await asyncio.sleep(0)
            await arrives(inbox, lambda: inbox.mailboxes.take(sender.address.key, []))
        inbox.close()


async def test_only_the_drafts_of_a_lost_engine_are_lost() -> None:
    async with DraftChannel() as channel:
        inbox = Inbox(channel.address, max_position=100, vocab_size=50)
        with channel.sender() as sender:
            inbox.open(sender.address.key)
            await connected(sender)
            inbox.close()
            async with asyncio.timeout(10):
                while not channel.counters.foreign:
                    sender.send(0, [1])
                    await asyncio.sleep(0.001)


async def test_only_this_user_can_reach_the_socket() -> None:
    async with DraftChannel() as channel:
        path = Path(channel.address.removeprefix("ipc://"))
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.parent.exists()


async def test_an_inbox_without_a_web_server_does_not_wait() -> None:
    inbox = Inbox("ipc:///nowhere/at/all", max_position=100, vocab_size=50)
    for n in range(5000):
        inbox.open(n.to_bytes(2, "little"))
        inbox.receive()
    assert len(inbox.mailboxes) > 1000
    inbox.close()
