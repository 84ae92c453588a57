"""The bound of a queue: a burst may fill it; one that does not empty shrinks with each turn, until it has emptied."""

from hypothesis import given
from hypothesis import strategies as st

from common.queueing import QueueBound

LONGEST, STANDING = 16, 6


def simulated(arrivals: int, turns: int) -> list[int]:
    """How many wait after each turn, where before each so many more come as are allowed."""
    bound, waiting, found = QueueBound(LONGEST, STANDING), 0, []
    for _ in range(turns):
        waiting += min(arrivals, max(0, bound.places - waiting))
        waiting -= waiting > 0
        bound.record_turn(waiting)
        found.append(waiting)
    return found


def test_a_burst_that_is_worked_off_may_fill_the_queue_again_and_again() -> None:
    bound = QueueBound(LONGEST, STANDING)
    for _ in range(3):
        assert bound.places == LONGEST
        for waiting in reversed(range(LONGEST)):
            bound.record_turn(waiting)


def test_a_queue_that_does_not_empty_gets_short_within_as_many_turns_as_it_was_long() -> None:
    waiting = simulated(arrivals=100, turns=200)
    assert waiting[0] == LONGEST - 1
    assert max(waiting[LONGEST:]) == STANDING - 1, "and it never runs empty"
    assert min(waiting[LONGEST:]) == STANDING - 1


def test_those_who_leave_empty_a_queue_too() -> None:
    bound = QueueBound(LONGEST, STANDING)
    bound.record_turn(LONGEST, LONGEST)
    assert bound.places == STANDING
    bound.record_turn(0, 0)
    assert bound.places == LONGEST


@given(longest=st.integers(0, 40), standing=st.integers(0, 40), waits=st.lists(st.integers(0, 40)))
def test_no_more_than_the_longest_may_ever_wait_and_no_fewer_than_the_shorter_of_both(
    longest: int, standing: int, waits: list[int]
) -> None:
    bound = QueueBound(longest, standing)
    for waiting in waits:
        bound.record_turn(waiting)
        assert min(longest, standing) <= bound.places <= longest
