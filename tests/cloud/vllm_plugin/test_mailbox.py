"""Mailboxes are bounded in number, bytes and age; drafts taken agree with the answer; drafts dropped are counted."""

import random

import pytest

from cloud.vllm_plugin.draft_messages import Counters
from cloud.vllm_plugin.mailbox import Mailboxes
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
