"""A batch comes to its end: whatever ends it in between, each line gets one result, and others do not wait for it."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from common.batch import runner
from common.batch.batch_input import BatchInput
from common.batch.batch_output import BatchOutput
from common.batch.lines import BatchLine
from common.batch.runner import MAX_ATTEMPTS, Attempt, BatchRunner, pause_before_retry
from common.errors import EndpointError
from common.http.retry import ConnectionBroken, Unreachable
from tests.support.batches import ScriptedTarget, attempt, results, row, written

NAMES = [f"q{number}" for number in range(40)]


@pytest.fixture
def given(tmp_path: Path) -> BatchInput:
    return BatchInput(written(tmp_path / "in.jsonl", [row(name) for name in NAMES]))


def tear(out: Path) -> None:
    """As if the program had ended while it wrote a line."""
    out.write_bytes(out.read_bytes() + b'{"id":"batch_req_')


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LONGEST_PAUSE", 0.0)


async def run(given: BatchInput, out: Path, target: ScriptedTarget, clients: int = 4, resume: bool = False) -> int:
    """Runs a batch to its end; returns how many lines failed."""
    with BatchOutput(out, given, resume) as output:
        await BatchRunner(given, output, target).run(clients)
        output.order()
        return output.failed


async def test_all_clients_are_kept_busy_and_no_more(given: BatchInput, out: Path) -> None:
    target = ScriptedTarget(lambda _: attempt())
    assert await run(given, out, target, clients=7) == 0
    assert target.most == 7
    assert [one["custom_id"] for one in results(out)] == NAMES


@pytest.mark.parametrize("stop_after", [1, 17, 33])
async def test_a_batch_that_was_ended_goes_on_with_what_is_left(stop_after: int, given: BatchInput, out: Path) -> None:
    """`stop_after` results the program is gone; only the lines that were in flight then are asked twice."""
    ended = asyncio.Event()

    def answer(line: BatchLine) -> Attempt:
        if out.read_bytes().count(b"\n") == stop_after:
            ended.set()
        return attempt()

    first = ScriptedTarget(answer)
    running = asyncio.create_task(run(given, out, first))
    await ended.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    kept = [one["custom_id"] for one in results(out)]
    assert stop_after <= len(kept) < len(NAMES)
    tear(out)
    second = ScriptedTarget(lambda _: attempt())
    await run(given, out, second, resume=True)
    assert Counter([*kept, *second.asked]) == Counter(NAMES)
    assert [one["custom_id"] for one in results(out)] == NAMES


async def test_a_full_server_is_asked_until_it_has_room(given: BatchInput, out: Path) -> None:
    refused = Counter[str]()

    def answer(line: BatchLine) -> Attempt:
        refused[line.custom_id] += 1
        return attempt(429) if refused[line.custom_id] <= 2 * MAX_ATTEMPTS else attempt()

    assert await run(given, out, ScriptedTarget(answer)) == 0
    assert {one["response"]["status_code"] for one in results(out)} == {200}


async def test_the_times_that_a_server_was_full_do_not_count_as_failures(given: BatchInput, out: Path) -> None:
    asked = Counter[str]()

    def answer(line: BatchLine) -> Attempt:
        asked[line.custom_id] += 1
        full, failing = asked[line.custom_id] <= 3, asked[line.custom_id] < 3 + MAX_ATTEMPTS
        return attempt(429 if full else 503 if failing else 200)

    assert await run(given, out, ScriptedTarget(answer)) == 0


async def test_a_wait_beyond_its_patience_ends_the_run_when_what_is_in_flight_has_ended(
    given: BatchInput, out: Path
) -> None:
    full = {"q5": 100.0, "q6": 0.0}

    def answer(line: BatchLine) -> Attempt:
        wait = full.get(line.custom_id)
        return attempt() if wait is None else attempt(429, retry_after=wait)

    target = ScriptedTarget(answer)
    async with asyncio.timeout(20):
        with BatchOutput(out, given, resume=False) as output:
            assert await BatchRunner(given, output, target, patience=60.0).run(4) == 100.0
    kept = {one["custom_id"] for one in results(out)}
    assert kept == set(target.asked) - set(full) and len(kept) < len(NAMES) // 2
    later = ScriptedTarget(lambda _: attempt())
    assert await run(given, out, later, resume=True) == 0
    assert Counter([*kept, *later.asked]) == Counter(NAMES)


async def test_a_line_that_fails_does_not_fail_others(given: BatchInput, out: Path) -> None:
    broken = ConnectionBroken("it broke the connection")
    fates: dict[str, Attempt | Exception] = {"q3": attempt(400, b'{"error":{}}'), "q5": broken, "q7": attempt(503)}
    target = ScriptedTarget(lambda line: fates.get(line.custom_id, attempt()))
    assert await run(given, out, target) == len(fates)
    found = {one["custom_id"]: one for one in results(out)}
    assert list(found) == NAMES
    assert found["q3"]["response"] == {"status_code": 400, "request_id": "r", "body": {"error": {}}}
    assert found["q5"]["response"] is None
    assert found["q5"]["error"] == {"code": "endpoint_unavailable", "message": "it broke the connection"}
    assert found["q7"]["response"]["status_code"] == 503
    asked = Counter(target.asked)
    assert [asked[name] for name in ("q3", "q5", "q7", "q9")] == [1, MAX_ATTEMPTS, MAX_ATTEMPTS, 1]


async def test_a_server_that_is_away_costs_no_line_its_attempts(given: BatchInput, out: Path) -> None:
    away = Counter[str]()

    def answer(line: BatchLine) -> Attempt | Exception:
        away[line.custom_id] += 1
        return Unreachable("nobody is there") if away[line.custom_id] <= 2 * MAX_ATTEMPTS else attempt()

    target = ScriptedTarget(answer)
    assert await run(given, out, target) == 0
    assert target.waits == 2 * MAX_ATTEMPTS * len(NAMES)


async def test_a_server_that_stays_away_ends_the_batch_and_keeps_what_is_finished(given: BatchInput, out: Path) -> None:
    class Gone(ScriptedTarget):
        async def wait_until_back(self) -> None:
            raise EndpointError("it stays away")

    target = Gone(lambda line: Unreachable("gone") if line.index >= 20 else attempt())
    with pytest.raises(EndpointError, match="it stays away"):
        await run(given, out, target)
    kept = {one["custom_id"] for one in results(out)}
    assert set(NAMES[:16]) <= kept <= set(NAMES[:20])  # without those that were in flight
    again = ScriptedTarget(lambda _: attempt())
    await run(given, out, again, resume=True)
    assert set(again.asked) == set(NAMES) - kept


@pytest.mark.parametrize(
    ("status", "attempts", "pause"),
    [(200, 1, None), (400, 1, None), (429, 0, 7.0), (429, 99, 7.0), (503, 1, 1.0), (None, 3, 4.0), (None, 5, None)],
)
def test_what_is_sent_again_and_when(
    status: int | None, attempts: int, pause: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "LONGEST_PAUSE", 30.0)
    assert pause_before_retry(status, 7.0, attempts) == pause
