"""The supervisor restarts an engine that dies, hangs or fails to start, and fails the requests that wait for it."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import aiohttp
import pytest
from aiohttp import web

from cloud.engine.supervisor import EngineSupervisor, SupervisorTiming
from common.errors import EngineError, StartError
from common.http.messages import stream
from common.http_server import HTTPServer, make_app

QUICK = SupervisorTiming(watch=0.01, hang=0.1, first_pause=0.01, longest_pause=0.04, healthy=3600.0, close=0.1)


@dataclass
class FakeEngine:
    """Dies and hangs on command; like a stuck library, it never fails a request by itself."""

    log: list[str] = field(default_factory=list)
    failing_starts: int = 0
    slow_start: bool = False
    stuck_close: bool = False
    dead: bool = False
    hanging: bool = False
    in_a_step: bool = False
    stepping: bool = False
    looks: int = 0
    counted: int = 0

    async def start(self) -> None:
        self.log.append("start")
        if self.slow_start:
            await asyncio.sleep(3600)
        if self.failing_starts:
            self.failing_starts -= 1
            raise StartError("no such model")
        self.dead = self.hanging = False

    def start_progress(self) -> str:
        return "it loads the model, 3 s so far"

    async def close(self) -> None:
        self.log.append("close")
        if self.stuck_close:
            await asyncio.sleep(3600)

    async def check_health(self) -> None:
        self.looks += 1
        if self.dead:
            raise EngineError("the engine has died")

    async def ping(self) -> None:
        while self.hanging:
            await asyncio.sleep(0.001)

    def computing(self) -> bool:
        return self.in_a_step

    def steps(self) -> int:
        self.counted += self.stepping
        return self.counted

    def kill(self) -> None:
        self.log.append("kill")


@asynccontextmanager
async def kept(engine: FakeEngine, timing: SupervisorTiming = QUICK) -> AsyncIterator[EngineSupervisor]:
    supervisor = EngineSupervisor(engine, timing)
    running = asyncio.create_task(supervisor.run())
    try:
        yield supervisor
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


async def request(supervisor: EngineSupervisor) -> None:
    with supervisor.using():
        await asyncio.sleep(3600)


def dies(engine: FakeEngine) -> None:
    engine.dead = True


def hangs(engine: FakeEngine) -> None:
    engine.hanging = True


LOSSES = pytest.mark.parametrize(
    ("lose", "message"), [(dies, "has died; it is being started"), (hangs, "has not answered for 0.3 s; it is being")]
)


@LOSSES
async def test_a_lost_engine_fails_waiting_requests_and_is_started_again(
    lose: Callable[[FakeEngine], None], message: str
) -> None:
    engine = FakeEngine()
    async with kept(engine) as supervisor:
        await supervisor.wait_up()
        waiting = [asyncio.create_task(request(supervisor)) for _ in range(3)]
        await asyncio.sleep(0)
        lose(engine)
        for one in waiting:
            with pytest.raises(EngineError, match=message):
                await one
        with pytest.raises(EngineError, match=message):
            supervisor.check()
        with pytest.raises(EngineError, match=message), supervisor.using():
            raise AssertionError("an engine that is down has taken a request")
        await supervisor.wait_up()
        supervisor.check()
        assert engine.log == ["start", "kill", "close", "start"]
    assert engine.log[-1] == "close"


async def test_a_silent_engine_takes_no_requests_until_it_answers() -> None:
    engine = FakeEngine()
    async with kept(engine, SupervisorTiming(watch=0.01, hang=0.05)) as supervisor:
        await supervisor.wait_up()
        waiting = asyncio.create_task(request(supervisor))
        await asyncio.sleep(0)
        hangs(engine)
        await until(lambda: not supervisor.ready)
        assert not waiting.done()  # it may just be a long step
        engine.hanging = False
        await until(lambda: supervisor.ready or engine.log != ["start"])
        assert (engine.log, waiting.done()) == (["start"], False)
        waiting.cancel()


async def test_an_engine_that_computes_is_never_lost_and_takes_requests_until_it_stops_computing() -> None:
    engine = FakeEngine(in_a_step=True)
    async with kept(engine) as supervisor:
        await supervisor.wait_up()
        hangs(engine)
        looks = engine.looks
        await until(lambda: engine.looks > looks + 100)  # three times as long as an idle engine may be silent
        assert (supervisor.ready, engine.log) == (True, ["start"])
        engine.in_a_step = False
        await until(lambda: not supervisor.ready)
        engine.in_a_step = True  # silent for a while only: stopped and continued
        await until(lambda: supervisor.ready)
        assert engine.log == ["start"]
        engine.in_a_step = False
        await until(lambda: engine.log == ["start", "kill", "close", "start"])


async def test_without_the_watch_a_dead_engine_stays_ready_and_its_requests_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control of the tests of lost engines."""
    monkeypatch.setattr(EngineSupervisor, "_lost", lambda _: asyncio.sleep(3600))
    engine = FakeEngine()
    async with kept(engine) as supervisor:
        await supervisor.wait_up()
        waiting = asyncio.create_task(request(supervisor))
        dies(engine)
        await asyncio.sleep(20 * QUICK.watch)
        assert supervisor.ready and engine.log == ["start"]
        assert not waiting.done()
        waiting.cancel()


async def test_without_a_limit_a_hanging_engine_stays_ready_and_its_requests_wait() -> None:
    """Negative control of the test above."""
    engine = FakeEngine()
    async with kept(engine, SupervisorTiming(watch=0.001, hang=3600)) as supervisor:
        await supervisor.wait_up()
        waiting = asyncio.create_task(request(supervisor))
        hangs(engine)
        seen = engine.looks
        await until(lambda: engine.looks > seen + 200)
        assert supervisor.ready
        assert not waiting.done()
        waiting.cancel()


async def test_what_waits_for_an_engine_that_answers_and_computes_nothing_fails_and_the_engine_stays() -> None:
    engine = FakeEngine()
    async with kept(engine, replace(QUICK, idle=0.1)) as supervisor:
        await supervisor.wait_up()
        with pytest.raises(EngineError, match=r"has computed nothing for 0.1 s"):
            await request(supervisor)
        assert supervisor.ready
        assert engine.log == ["start"]


@pytest.mark.parametrize(("stepping", "idle"), [(True, 0.1), (False, 3600.0)])
async def test_what_waits_for_an_engine_that_computes_waits_on(stepping: bool, idle: float) -> None:
    """Without the limit, also for one that does not: the negative control of the test above."""
    engine = FakeEngine(stepping=stepping)
    async with kept(engine, replace(QUICK, idle=idle)) as supervisor:
        await supervisor.wait_up()
        waiting = asyncio.create_task(request(supervisor))
        seen = engine.looks
        await until(lambda: engine.looks > seen + 50)
        assert not waiting.done()
        waiting.cancel()


async def test_an_engine_that_answers_in_time_is_left_alone() -> None:
    engine = FakeEngine()
    async with kept(engine, SupervisorTiming(watch=0.001, hang=0.02)) as supervisor:
        await supervisor.wait_up()
        await until(lambda: engine.looks > 200)
        assert engine.log == ["start"]


async def test_a_blocked_loop_in_this_process_is_no_hang_of_the_engine() -> None:
    engine = FakeEngine()
    async with kept(engine) as supervisor:
        await supervisor.wait_up()
        for _ in range(3):
            time.sleep(3 * QUICK.hang)  # noqa: ASYNC251 - blocks the loop on purpose
            await asyncio.sleep(QUICK.watch)
        assert engine.log == ["start"]


async def test_a_first_start_that_fails_is_raised_to_all_that_wait() -> None:
    engine = FakeEngine(failing_starts=1)
    supervisor = EngineSupervisor(engine, QUICK)
    waiting = asyncio.create_task(supervisor.wait_up())
    with pytest.raises(StartError, match="no such model"):
        await supervisor.run()
    with pytest.raises(StartError, match="no such model"):
        await waiting
    with pytest.raises(EngineError, match="no such model"):
        supervisor.check()
    assert engine.log == ["start", "close"]


PATIENT = SupervisorTiming(watch=0.01, hang=0.1, first_pause=1, longest_pause=8, healthy=3600.0)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The sleeps of 1 s and more, which take no time in this test."""
    seen: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        if seconds >= 1:
            seen.append(seconds)
        await sleep(0 if seconds >= 1 else seconds)

    monkeypatch.setattr(asyncio, "sleep", noted)
    return seen


async def test_a_start_that_fails_later_is_tried_again_after_growing_pauses(
    pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    engine = FakeEngine()
    with caplog.at_level(logging.ERROR):
        async with kept(engine, PATIENT) as supervisor:
            await supervisor.wait_up()
            engine.failing_starts = 5
            dies(engine)
            await until(lambda: engine.log.count("start") == 7 and supervisor.ready)
    assert pauses == [1, 2, 4, 8, 8, 8]
    assert caplog.text.count("did not start again: no such model") == 5


@pytest.mark.parametrize(("healthy", "expected"), [(3600.0, [1, 2, 4]), (0.0, [1, 1, 1])])
async def test_an_engine_healthy_for_long_enough_resets_the_pauses(
    pauses: list[float], healthy: float, expected: list[float]
) -> None:
    engine = FakeEngine()
    async with kept(engine, replace(PATIENT, healthy=healthy)) as supervisor:
        await supervisor.wait_up()
        for times in (1, 2, 3):
            dies(engine)
            await until(lambda: len(pauses) == times and supervisor.ready)  # noqa: B023
    assert pauses == expected


async def test_closing_during_a_restart_starts_nothing_more() -> None:
    engine = FakeEngine()
    async with kept(engine) as supervisor:
        await supervisor.wait_up()
        engine.slow_start = True
        dies(engine)
        await until(lambda: engine.log.count("start") == 2)
        waiting = asyncio.create_task(supervisor.wait_up())
        await asyncio.sleep(0)
    with pytest.raises(EngineError, match="closed"):
        await waiting
    assert engine.log == ["start", "kill", "close", "start", "close"]


async def test_closing_fails_waiting_requests() -> None:
    async with kept(FakeEngine()) as supervisor:
        await supervisor.wait_up()
        waiting = asyncio.create_task(request(supervisor))
        await asyncio.sleep(0)
    with pytest.raises(EngineError, match="the engine is closed"):
        await waiting


async def test_an_engine_that_cannot_be_closed_is_still_started_again() -> None:
    engine = FakeEngine(stuck_close=True)
    async with kept(engine) as supervisor:
        await supervisor.wait_up()
        dies(engine)
        await until(lambda: engine.log.count("start") == 2)
        await supervisor.wait_up()
        engine.stuck_close = False


async def test_a_cancelled_wait_raises_cancelled_error_and_no_engine_error() -> None:
    engine = FakeEngine(slow_start=True)
    async with kept(engine) as supervisor:
        waiting_up = asyncio.create_task(supervisor.wait_up())
        await asyncio.sleep(0)
        waiting_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting_up
    async with kept(FakeEngine()) as supervisor:
        await supervisor.wait_up()
        waiting = asyncio.create_task(request(supervisor))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):  # its own deadline is still a TimeoutError
                await request(supervisor)
        assert supervisor.ready


async def test_each_loss_is_reported() -> None:
    losses: list[str] = []
    engine = FakeEngine()
    supervisor = EngineSupervisor(engine, QUICK, lambda: losses.append("lost"))
    running = asyncio.create_task(supervisor.run())
    for times in (1, 2):
        await supervisor.wait_up()
        dies(engine)
        await until(lambda: len(losses) == times)  # noqa: B023
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_stream_reports_the_loss_even_if_its_client_reads_slowly() -> None:
    engine = FakeEngine()
    blocked = asyncio.Event()

    async with kept(engine) as supervisor:

        async def events() -> AsyncGenerator[bytes, None]:
            with supervisor.using():
                while True:
                    asyncio.get_running_loop().call_later(0.2, blocked.set)
                    yield b"data: " + b"x" * 10**7 + b"\n\n"
                    blocked.clear()

        async def handler(request: web.Request) -> web.StreamResponse:
            return await stream(request, events())

        await supervisor.wait_up()
        app = make_app()
        app.router.add_get("/events", handler)
        server = HTTPServer(app, "127.0.0.1", 0)
        await server.start()
        url = f"http://127.0.0.1:{server.port}/events"
        async with aiohttp.ClientSession(read_bufsize=2**10) as session, session.get(url) as answer:
            await blocked.wait()  # in the middle of a write
            dies(engine)
            assert b"the engine has died" in (await answer.read())[-500:]
        await server.stop()
