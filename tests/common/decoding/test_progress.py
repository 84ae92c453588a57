"""An answer that shows no sign of work fails, and says what it waited for; one that shows any goes on."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from common.config_edge import LimitsConfig
from common.decoding import progress
from common.decoding.progress import Progress, current_progress, record_work, waiting, watched
from common.errors import EngineError
from edge.engine.sequence_pool import SequencePool

SECONDS = 0.2


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "STILL_SECONDS", SECONDS)


async def answer(wait: Callable[[], Awaitable[object]]) -> Progress:
    async with watched() as seen:
        await wait()
        return seen


async def forever() -> None:
    await asyncio.sleep(3600)


async def in_vain() -> None:
    with waiting("the edge's model", lambda: 7):
        await forever()


async def in_two_tasks() -> None:
    with waiting("the cloud's verdict"):
        await asyncio.create_task(in_vain())


async def for_a_sequence() -> None:
    """Its holder, another answer, does nothing."""
    pool, own = SequencePool(1, LimitsConfig()), current_progress.get()
    current_progress.set(Progress())
    async with pool.lend(1, lambda _: 0):
        current_progress.set(own)
        async with pool.lend(1, lambda _: 0):
            raise AssertionError("there is only one")


@pytest.mark.parametrize(
    ("wait", "place"),
    [
        (forever, "something that has no name"),
        (in_vain, "the edge's model"),
        (in_two_tasks, "the cloud's verdict and the edge's model"),
        (for_a_sequence, "a free sequence of the edge's model"),
    ],
)
async def test_an_answer_that_stands_still_fails_and_says_where(
    wait: Callable[[], Awaitable[object]], place: str
) -> None:
    with pytest.raises(EngineError, match=f"no sign of work for {SECONDS:g} s: the answer waited for {place}$"):
        await answer(wait)


async def test_without_the_watch_it_waits_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    monkeypatch.setattr(progress, "STILL_SECONDS", 3600.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5 * SECONDS):
            await answer(in_vain)


async def many_waits() -> None:
    for _ in range(30):
        with waiting("the edge's model"):
            await asyncio.sleep(SECONDS / 10)


async def one_long_wait_with_signs() -> None:
    with waiting("the edge's model", itertools.count().__next__):
        await asyncio.sleep(3 * SECONDS)


async def a_call_that_the_server_works_on() -> None:
    with waiting("the cloud's verdict"):
        for _ in range(30):
            await asyncio.sleep(SECONDS / 10)
            record_work()


@pytest.mark.parametrize("wait", [many_waits, one_long_wait_with_signs, a_call_that_the_server_works_on])
async def test_work_takes_as_long_as_it_takes(wait: Callable[[], Awaitable[object]]) -> None:
    await answer(wait)


async def test_the_longest_wait_is_known_by_its_name() -> None:
    async with watched() as seen:
        with waiting("a short one"):
            await asyncio.sleep(0)
        with waiting("a long one"):
            await asyncio.sleep(SECONDS / 4)
    what, seconds = seen.longest
    assert what == "a long one"
    assert seconds >= SECONDS / 4 * 0.9


async def test_a_timeout_of_the_answer_itself_is_left_as_it_is() -> None:
    async def own() -> None:
        raise TimeoutError("of a call")

    with pytest.raises(TimeoutError, match="of a call"):
        await answer(own)


async def test_a_client_that_leaves_cancels_and_nothing_watches_on() -> None:
    before = asyncio.all_tasks()
    task = asyncio.create_task(answer(in_vain))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() <= before
