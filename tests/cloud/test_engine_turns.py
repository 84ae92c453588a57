"""Who waits for whom at the cloud: its engine's time is shared among keys by weight, and batches come last."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from cloud.cloud_server import weight_of
from cloud.routes import engine_turns
from cloud.routes.admission import Admission
from cloud.routes.engine_turns import EngineTurns, MeanSeconds, read_ahead
from common.config_cloud import AdmissionConfig, BatchConfig, CloudConfig, CloudKeyConfig, DraftVerifierConfig
from common.config_values import Secret
from common.errors import OverloadedError
from common.fair_queue import FairQueue, WeightOf, equal_weights
from common.http.auth import tenant_name
from common.http.request_context import current_priority, current_tenant
from common.protocol.prefix_hash import prefix_hash
from tests.cloud.toy_engine import ToyEngine, toy_cloud
from tests.support.manual_clock import ManualClock

ANN, BOB, EVE = "key-of-ann", "key-of-bob", "key-of-eve"
PLACES = 2


class GatedEngine(ToyEngine):
    """Computes nothing until its gate opens; `served` has who was served, in order: the tenant, and whether a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.served: list[tuple[str, bool]] = []

    async def generate(self, *arguments: Any) -> AsyncGenerator[SimpleNamespace, None]:
        self.served.append((arguments[-1] or "", current_priority.get() > 0))
        await self.gate.wait()
        await asyncio.sleep(0.001)
        async for output in super().generate(*arguments):
            yield output


def config(max_requests: int = 256, **weights: float) -> CloudConfig:
    keys = [CloudKeyConfig(api_key=Secret(key), weight=weights.get(key[-3:], 1.0)) for key in (ANN, BOB, EVE)]
    drafts = DraftVerifierConfig(resident_sessions=0, batch=BatchConfig(max_batch_size=PLACES))
    return CloudConfig(admission=AdmissionConfig(max_requests=max_requests, keys=keys), draft_verifier=drafts)


class CrowdedCloud:
    """A cloud whose engine waits until all have asked."""

    def __init__(self, http: aiohttp.ClientSession, engine: GatedEngine) -> None:
        self._http, self._engine = http, engine
        self.asked: list[asyncio.Task[int]] = []

    async def ask(self, key: str, times: int, priority: int = 0) -> None:
        before = await self.count()
        body = {"new_token_ids": [5, 6, 7], "priority": priority}
        self.asked += [asyncio.create_task(self.verify(key, body)) for _ in range(times)]
        async with asyncio.timeout(20):
            while await self.count() + sum(task.done() for task in self.asked) < before + times:
                await asyncio.sleep(0.01)

    async def served(self) -> list[str]:
        """Who was served after the first PLACES, in order: `ann`, or `ANN` for a batch."""
        self._engine.gate.set()
        await asyncio.gather(*self.asked)
        names = {tenant_name(Secret(key)): key[-3:] for key in (ANN, BOB, EVE)}
        return [names[who].upper() if batch else names[who] for who, batch in self._engine.served[1 + PLACES :]]

    async def statuses(self) -> Counter[int]:
        self._engine.gate.set()
        return Counter(await asyncio.gather(*self.asked))

    async def count(self) -> int:
        """Sequences that are admitted now."""
        async with self._http.get("/metrics") as response:
            lines = (await response.text()).splitlines()
        return next(int(float(line.split()[1])) for line in lines if line.startswith("edgecloud_admission_requests "))

    def streaming(self, key: str) -> Any:
        """A connection for streams, on which pongs can be seen."""
        return self._http.ws_connect("/stream", headers={"Authorization": f"Bearer {key}"}, autoping=False)

    async def verify(self, key: str, body: dict[str, Any]) -> int:
        """The status of the reply."""
        async with self._http.post("/verify", json=body, headers={"Authorization": f"Bearer {key}"}) as response:
            await response.read()
            return response.status


@asynccontextmanager
async def crowded(cloud: CloudConfig) -> AsyncIterator[CrowdedCloud]:
    engine = GatedEngine()
    async with toy_cloud(engine, cloud) as http:
        engine.gate.clear()
        yield CrowdedCloud(http, engine)


async def test_a_key_that_floods_the_cloud_does_not_starve_another() -> None:
    async with crowded(config()) as cloud:
        await cloud.ask(EVE, 60)
        await cloud.ask(ANN, 5)
        served = await cloud.served()
    assert "ann" not in served[11:], "each has every other turn, at least, while both wait"
    assert len(served) == 63


async def test_without_turns_the_flood_is_served_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FairQueue, "_begins", lambda queue, waiter: 0.0)
    async with crowded(config()) as cloud:
        await cloud.ask(EVE, 60)
        await cloud.ask(ANN, 5)
        assert (await cloud.served())[-5:] == ["ann"] * 5


async def test_a_round_in_the_middle_of_an_answer_is_known_as_one_also_by_a_cloud_that_gets_the_whole_prefix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admit, begun = Admission.admit, list[bool]()

    def noted(admission: Admission, *work: Any, **named: Any) -> Any:
        begun.append(named["begun"])
        return admit(admission, *work, **named)

    async with toy_cloud(GatedEngine(), config()) as http:
        monkeypatch.setattr(Admission, "admit", noted)
        for sampling in ({}, {"prompt_tokens": 3}, {"prompt_tokens": 2}):
            body = {"new_token_ids": [5, 6, 7], "sampling": sampling}
            async with http.post("/verify", json=body, headers={"Authorization": f"Bearer {ANN}"}) as response:
                assert response.status == 200
    assert begun == [False, False, True]


async def test_batches_wait_until_nothing_else_does() -> None:
    async with crowded(config()) as cloud:
        await cloud.ask(ANN, 6, priority=1)
        await cloud.ask(BOB, 3)
        served = await cloud.served()
    assert served == ["bob"] * 3 + ["ANN"] * 4


async def test_a_full_cloud_still_takes_a_key_that_has_less_than_its_share() -> None:
    async with crowded(config(max_requests=12)) as cloud:
        await cloud.ask(EVE, 30)
        await cloud.ask(ANN, 6)
        assert [task.done() for task in cloud.asked[30:]] == [False] * 6
        assert await cloud.statuses() == {429: 18, 200: 12 + 6}


async def test_a_cloud_full_of_batches_refuses_only_batches() -> None:
    async with crowded(config(max_requests=8)) as cloud:
        await cloud.ask(ANN, 10, priority=1)
        await cloud.ask(ANN, 8)
        assert await cloud.statuses() == {429: 2, 200: 16}


async def test_a_round_that_is_abandoned_while_it_waits_leaves_its_turn_to_others() -> None:
    async with crowded(config()) as cloud:
        await cloud.ask(EVE, PLACES + 1)
        await cloud.ask(ANN, 1)
        cloud.asked.pop().cancel()
        async with asyncio.timeout(20):
            while await cloud.count() > PLACES + 1:
                await asyncio.sleep(0.01)
        assert await cloud.served() == ["eve"]
        assert await cloud.count() == 0


async def test_a_round_that_is_refused_does_not_wait_for_the_engine() -> None:
    async with crowded(config()) as cloud:
        await cloud.ask(EVE, PLACES + 3)
        unknown = {"session": "nobody", "prefix_length": 3, "prefix_hash": prefix_hash([5, 6, 7]), "new_token_ids": [5]}
        async with asyncio.timeout(20):
            assert [await cloud.verify(ANN, {"new_token_ids": [10**6]}), await cloud.verify(ANN, unknown)] == [400, 409]
        assert await cloud.statuses() == {200: PLACES + 3}


async def test_a_stream_that_waits_for_its_turn_answers_pings() -> None:
    """Else its edge takes it for lost, and so does the front of several replicas."""
    async with crowded(config()) as cloud:
        await cloud.ask(EVE, PLACES)
        async with cloud.streaming(ANN) as ws, asyncio.timeout(20):
            await ws.send_json({"type": "start", "token_ids": [5, 6, 7], "max_tokens": 1})
            while await cloud.count() <= PLACES:
                await asyncio.sleep(0.01)
            await ws.ping()
            assert (await ws.receive()).type is aiohttp.WSMsgType.PONG
        assert await cloud.statuses() == {200: PLACES}


# The same with a clock of its own


class TimedEngine:
    """One place, on which each tenant's turns take so many seconds; `busy` has the seconds that each has had."""

    def __init__(self, weight: WeightOf = equal_weights, **seconds: float) -> None:
        self.clock, self.busy = ManualClock(), dict.fromkeys(seconds, 0.0)
        self.turns = EngineTurns(1, weight, self.clock)
        self._seconds = seconds

    def share(self, tenant: str) -> float:
        return self.busy[tenant] / sum(self.busy.values())

    async def ask(self, tenant: str) -> None:
        current_tenant.set(tenant)
        async with self.turns.turn():
            self.clock.now += self._seconds[tenant]
            self.busy[tenant] += self._seconds[tenant]
            await asyncio.sleep(0)

    async def run(self, seconds: float) -> None:
        """Everybody always has requests that wait, until so many seconds have passed."""

        async def client(tenant: str) -> None:
            while self.clock.now < seconds:
                await self.ask(tenant)

        await asyncio.gather(*(asyncio.create_task(client(tenant)) for tenant in self._seconds for _ in range(3)))


async def test_what_is_shared_is_time_not_the_number_of_requests() -> None:
    engine = TimedEngine(verifies=0.01, answers=0.5)
    await engine.run(200)
    shares = [engine.share(name) for name in ("verifies", "answers")]
    assert shares == [pytest.approx(0.5, abs=0.03)] * 2


async def test_time_is_shared_by_the_weights_of_the_config() -> None:
    engine = TimedEngine(weight_of(config(ann=3.0).admission), **{tenant_name(Secret(key)): 0.1 for key in (ANN, BOB)})
    await engine.run(200)
    shares = [engine.share(tenant_name(Secret(key))) for key in (ANN, BOB)]
    assert shares == [pytest.approx(share, abs=0.03) for share in (0.75, 0.25)]


async def test_by_number_of_requests_long_answers_would_take_nearly_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MeanSeconds, "of", lambda mean, tenant: 1.0)
    engine = TimedEngine(verifies=0.01, answers=0.5)
    await engine.run(200)
    assert engine.share("answers") > 0.9


async def test_a_client_that_reads_slowly_holds_no_place_once_its_answer_is_computed() -> None:
    async def answer() -> AsyncGenerator[int, None]:
        for token in range(5):
            await asyncio.sleep(0)
            yield token

    turns = EngineTurns(1)

    async def computed() -> AsyncGenerator[int, None]:
        async with turns.turn(), aclosing(answer()) as tokens:
            async for token in tokens:
                yield token

    async with aclosing(read_ahead(computed())) as events:
        assert await anext(events) == 0
        async with asyncio.timeout(20), turns.turn():
            assert [token async for token in events] == [1, 2, 3, 4]


async def test_an_answer_that_is_left_is_closed_where_it_is_drawn_and_its_failure_is_the_readers() -> None:
    tasks = list[Any]()

    async def answer(fails: bool) -> AsyncGenerator[int, None]:
        try:
            yield 0
            if fails:
                raise ZeroDivisionError
            await asyncio.sleep(3600)
        finally:
            tasks.append(asyncio.current_task())

    async with aclosing(read_ahead(answer(False))) as events:
        assert await anext(events) == 0
    with pytest.raises(ZeroDivisionError):
        assert [token async for token in read_ahead(answer(True))] == [0]
    assert len(tasks) == 2
    assert asyncio.current_task() not in tasks


def test_a_new_tenants_first_turn_counts_as_those_of_others_take() -> None:
    mean = MeanSeconds()
    for _ in range(10):
        mean.record("ann", 0.02)
    assert mean.of("bob") == pytest.approx(0.02)
    mean.record("bob", 0.04)
    assert 0.02 < mean.of("bob") < 0.04
    assert engine_turns.NEWEST < 0.5, "one long turn does not make a tenant's next ones expensive"


async def test_for_any_order_of_work_nobody_takes_more_than_the_limit_and_a_share() -> None:
    await asyncio.create_task(_any_order())  # a task of its own, whose tenants are not those of later tests


async def _any_order() -> None:
    chance, admission, held = random.Random(5), Admission(8, 1000), list[Any]()
    for _ in range(3000):
        current_tenant.set(chance.choice("abc"))
        current_priority.set(chance.randint(0, 1))
        work = admission.admit(chance.randint(1, 200))
        if held and chance.random() < 0.5:
            held.pop(chance.randrange(len(held))).__exit__(None, None, None)
            continue
        try:
            work.__enter__()
        except OverloadedError:
            continue
        held.append(work)
        assert admission.held.requests <= 2 * (8 + 4 + 2)
    assert admission.refused
    for work in held:
        work.__exit__(None, None, None)
    assert admission.held.requests == admission.held.tokens == 0


async def test_the_wait_for_a_turn_is_told_from_the_turn() -> None:
    now, second_waits = 0.0, asyncio.Event()
    turns = EngineTurns(1, clock=lambda: now)

    async def second() -> None:
        nonlocal now
        second_waits.set()
        async with turns.turn():
            now += 1.0

    async with turns.turn():
        waiting = asyncio.create_task(second())
        await second_waits.wait()
        await asyncio.sleep(0)
        now += 2.0
    await waiting
    assert (turns.ended, turns.waited_seconds, turns.held_seconds) == (2, 2.0, 3.0)
