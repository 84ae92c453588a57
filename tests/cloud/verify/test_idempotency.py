"""A repeated request gets the first answer; a failed one runs again; the memory is bounded."""

import asyncio

import pytest

from cloud.verify.idempotency import Replays
from common.errors import EngineError, RequestError


class Runs:
    """Counts its runs; each returns its number once `go` is set."""

    def __init__(self) -> None:
        self.count = 0
        self.go = asyncio.Event()

    async def __call__(self) -> int:
        self.count += 1
        number = self.count
        await self.go.wait()
        return number


async def test_a_repeat_has_the_first_answer_without_a_second_run() -> None:
    replays, runs = Replays[int](), Runs()
    runs.go.set()
    assert [await replays.once("k", b"a", runs) for _ in range(3)] == [1, 1, 1]
    assert await replays.once("other", b"a", runs) == 2


async def test_a_repeat_joins_a_running_run() -> None:
    replays, runs = Replays[int](), Runs()
    jobs = [asyncio.create_task(replays.once("k", b"a", runs)) for _ in range(3)]
    await asyncio.sleep(0)
    runs.go.set()
    assert await asyncio.gather(*jobs) == [1, 1, 1]


async def test_a_cancelled_run_is_repeated_for_those_that_still_wait() -> None:
    replays, runs = Replays[int](), Runs()
    first, second = (asyncio.create_task(replays.once("k", b"a", runs)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    runs.go.set()
    assert await second == 2


async def test_a_cancelled_repeat_does_not_disturb_the_run() -> None:
    replays, runs = Replays[int](), Runs()
    first, second = (asyncio.create_task(replays.once("k", b"a", runs)) for _ in range(2))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    runs.go.set()
    assert (await first, second.cancelled()) == (1, True)


async def test_a_failure_is_not_kept() -> None:
    async def fail() -> int:
        raise EngineError("down")

    replays, runs = Replays[int](), Runs()
    runs.go.set()
    with pytest.raises(EngineError):
        await replays.once("k", b"a", fail)
    assert await replays.once("k", b"a", runs) == 1


async def test_a_key_used_for_another_request_is_refused() -> None:
    replays, runs = Replays[int](), Runs()
    runs.go.set()
    await replays.once("k", b"a", runs)
    with pytest.raises(RequestError, match="idempotency_key"):
        await replays.once("k", b"b", runs)


async def test_the_oldest_answers_are_forgotten() -> None:
    replays, runs = Replays[int](count=2), Runs()
    runs.go.set()
    for key in "abc":
        await replays.once(key, b"", runs)
    assert [await replays.once(key, b"", runs) for key in "ca"] == [3, 4]
