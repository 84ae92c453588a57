"""Admission never exceeds its limits, tells refused requests when to try again, and releases all work."""

import asyncio
import random
from contextlib import ExitStack, suppress

import pytest

from cloud.routes.admission import STANDING_TURNS, Admission
from common.errors import OverloadedError
from common.fair_queue import Turns
from common.http.request_context import current_priority
from common.queueing import LONGEST_WAIT, Work
from tests.support.manual_clock import ManualClock


def refusal(admission: Admission, tokens: int, requests: int = 1) -> OverloadedError:
    with pytest.raises(OverloadedError) as failure, admission.admit(tokens, requests):
        pass
    return failure.value


@pytest.mark.parametrize(("limit", "work"), [(Work(3, 10**6), Work(1, 1)), (Work(10**6, 30), Work(1, 10))])
def test_work_is_admitted_up_to_either_limit(limit: Work, work: Work) -> None:
    admission = Admission(limit.requests, limit.tokens)
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(admission.admit(work.tokens, work.requests))
        assert refusal(admission, work.tokens, work.requests).status == 429
        assert (admission.admitted, admission.refused) == (3, 1)
    with admission.admit(work.tokens, work.requests):
        assert admission.held == work
    assert admission.held == Work(0, 0)


def test_work_that_exceeds_the_limits_alone_is_admitted_when_nothing_runs() -> None:
    admission = Admission(2, 100)
    with admission.admit(1):
        refusal(admission, 1000)
        refusal(admission, 1, requests=16)
    with admission.admit(1000, requests=16):
        refusal(admission, 1)


def test_failed_and_cancelled_work_is_released() -> None:
    admission = Admission(2, 100)
    with pytest.raises(ZeroDivisionError), admission.admit(50):
        raise ZeroDivisionError
    assert admission.held == Work(0, 0)


async def test_a_client_that_leaves_makes_room() -> None:
    admission = Admission(1, 100)

    async def request() -> None:
        with admission.admit(50):
            await asyncio.sleep(3600)

    asked = asyncio.create_task(request())
    await asyncio.sleep(0)
    refusal(admission, 50)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    with admission.admit(50):
        pass


def test_the_limits_hold_for_any_order_of_admissions_and_releases() -> None:
    draw, admission, held = random.Random(7), Admission(5, 100), []
    for _ in range(3000):
        if held and draw.random() < 0.5:
            held.pop(draw.randrange(len(held))).close()
            continue
        work = ExitStack()
        try:
            work.enter_context(admission.admit(draw.randint(1, 50)))
        except OverloadedError:
            continue
        held.append(work)
        assert admission.held.requests <= 5
        assert admission.held.tokens <= 100
    assert admission.refused
    for work in held:
        work.close()
    assert admission.held == Work(0, 0)


@pytest.mark.parametrize("seconds_each", [0.5, 2.0, 7.0])
def test_retry_after_follows_the_rate_at_which_work_was_released(seconds_each: float) -> None:
    """Work of 100 tokens is released piece by piece: 300 tokens fit after three releases."""
    clock = ManualClock(1000.0)
    admission = Admission(1000, 500, clock=clock)
    held = [ExitStack() for _ in range(5)]
    for work in held:
        work.enter_context(admission.admit(100))
    for at in range(8):
        clock.now += seconds_each
        held[at % 5].close()
        held[at % 5].enter_context(admission.admit(100))
    wait = refusal(admission, 300).retry_after
    assert 3 * seconds_each <= wait < 3 * seconds_each + 1


def test_retry_after_is_the_age_of_the_oldest_work_until_some_is_released() -> None:
    clock = ManualClock(1000.0)
    admission = Admission(1, 100, clock=clock)
    with admission.admit(1):
        assert refusal(admission, 1).retry_after == 1
        clock.now += 12.3
        assert refusal(admission, 1).retry_after == 13
        clock.now += 1e6
        assert refusal(admission, 1).retry_after == LONGEST_WAIT


def test_retry_after_ignores_releases_of_long_ago() -> None:
    clock = ManualClock(1000.0)
    admission = Admission(1, 100, clock=clock)
    for _ in range(10):
        with admission.admit(1):
            clock.now += 0.01
    clock.now += 3600
    with admission.admit(1):
        clock.now += 20
        assert refusal(admission, 1).retry_after == 20


def crowded() -> Admission:
    """Of an engine with 8 places, at which all others wait."""
    admission = Admission(40, 10**6, at_once=8, waiting=lambda: admission.held.requests - 8)
    return admission


def served(admission: Admission, held: list[ExitStack], arrivals: int) -> list[int]:
    """Refusals of each of 200 turns: so many come, and the one that was admitted first ends."""
    refusals = []
    for _ in range(200):
        before = admission.refused
        for _ in range(arrivals):
            work = ExitStack()
            with suppress(OverloadedError):
                work.enter_context(admission.admit(1))
                held.append(work)
        held.pop(0).close()
        refusals.append(admission.refused - before)
    return refusals


def test_a_burst_fills_vllms_queue_and_one_that_does_not_empty_is_kept_short() -> None:
    admission, held = crowded(), list[ExitStack]()
    served(admission, held, arrivals=20)
    assert admission.held.requests == 8 + int(STANDING_TURNS * 8) - 1
    while held:
        held.pop().close()
    with ExitStack() as burst:
        for _ in range(40):
            burst.enter_context(admission.admit(1))
        refusal(admission, 1)


def test_a_standing_queue_keeps_no_round_of_an_answer_out_that_has_begun() -> None:
    """Else every answer of an edge would lose its cloud at one of its rounds, and none would be whole."""
    admission, held = crowded(), list[ExitStack]()
    served(admission, held, arrivals=20)
    with ExitStack() as rounds:
        while admission.held.requests < 40:
            rounds.enter_context(admission.admit(1, begun=True))
            refusal(admission, 1)
        with pytest.raises(OverloadedError), admission.admit(1, begun=True):
            pass


def test_a_server_without_room_for_the_smallest_request_says_so_before_it_is_read() -> None:
    admission = Admission(2, 100)
    admission.check_room()
    with admission.admit(99):
        admission.check_room()
        with admission.admit(1), pytest.raises(OverloadedError):
            admission.check_room()


def test_answers_that_are_computed_and_read_slowly_keep_nobody_out() -> None:
    """They hold what was admitted, but no place of the engine, for which nobody waits."""
    admission, readers = Admission(40, 10**6, at_once=8), ExitStack()
    with readers:
        for _ in range(30):
            readers.enter_context(admission.admit(1))
        for _ in range(100):
            with admission.admit(1):
                pass
        assert not admission.refused


async def test_batches_that_wait_do_not_shorten_the_queue_of_others() -> None:
    turns = Turns(8)
    admission = Admission(40, 10**6, at_once=8, waiting=lambda: turns.people)
    current_priority.set(1)
    await turns.take(8)
    waiting = [asyncio.create_task(turns.take()) for _ in range(20)]
    await asyncio.sleep(0)
    for _ in range(100):
        with admission.admit(1):
            pass
    current_priority.set(0)
    assert (len(turns), turns.people) == (20, 0)
    with ExitStack() as burst:
        for _ in range(40):
            burst.enter_context(admission.admit(1))
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


def test_parts_of_answers_that_have_begun_are_no_turns() -> None:
    """Of a split model's tail, for example, whose tokens another engine computes."""
    admission = crowded()
    with ExitStack() as held:
        for _ in range(20):
            held.enter_context(admission.admit(1))
        for _ in range(100):
            with admission.admit(1, begun=True):
                pass
        for _ in range(20):
            held.enter_context(admission.admit(1))
