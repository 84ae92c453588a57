"""Replicas that die, hang, do not start, and are replaced: who takes requests meanwhile, and what is told."""

import asyncio
import itertools
from dataclasses import replace

import pytest
from cachetools import TTLCache

from cloud.replicas.fleet import Fleet
from cloud.replicas.replica import ReplicaAddress
from cloud.replicas.request_key import NO_KEY, RequestKey
from cloud.replicas.updates import roll
from common.errors import EngineError, StartError
from common.http_server import FATAL
from tests.cloud.replicas.fake_replica import QUICK, FakeReplica, front
from tests.cloud.test_kv_cache import store

PROMPT = list(range(100))


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_dead_replica_is_started_again_and_takes_requests_when_it_is_ready() -> None:
    async with front() as running:
        dead, other = running.fakes
        dead.ready = False
        await dead.kill()
        await until(lambda: dead.starts_with == 2)
        assert {running.fleet.pick(NO_KEY).process for _ in range(8)} == {other}
        dead.ready = True
        await running.until_ready()
        assert running.fleet.replicas[0].stats()["losses"] == 1


async def test_a_replica_that_stands_still_is_killed_and_its_requests_go_to_another_one() -> None:
    async with front(timing=replace(QUICK, patience=1.0, silences=2)) as running:
        asking = asyncio.create_task(running.http.post("/v1/completions", json={}))
        await until(lambda: any(fake.begun.is_set() for fake in running.fakes))
        (hung,) = [fake for fake in running.fakes if fake.begun.is_set()]
        (other,) = [fake for fake in running.fakes if fake is not hung]
        hung.silent = True
        other.go_on.set()
        reply = await asyncio.wait_for(asking, 20)
        assert (await reply.json())["by"] == other.name
        await running.until_ready()
        assert hung.starts_with == 2


async def test_a_lost_replicas_sessions_and_blocks_are_forgotten() -> None:
    async with front() as running:
        store(running.fakes[0].cache, "0", PROMPT, 16)
        await asyncio.sleep(0.05)
        key = RequestKey("s", PROMPT)
        assert running.fleet.pick(key) is running.fleet.replicas[0]
        running.fakes[0].cache.clear("0")
        await running.fakes[0].kill()
        await until(lambda: running.fleet.replicas[0].losses == 1)
        assert running.fleet.pick(RequestKey("s")) is running.fleet.replicas[1]
        await running.until_ready()
        assert running.fleet.index.longest_prefix(PROMPT).get("0/0", 0) == 0


async def test_a_session_that_expires_while_those_of_a_lost_replica_are_forgotten_ends_nothing() -> None:
    async with front() as running:
        clock = itertools.count()
        running.fleet._sessions = TTLCache(8, 1.5, timer=lambda: next(clock))  # found at 1, expired at 2
        running.fleet._sessions["s"] = "0"
        await running.fakes[0].kill()
        await until(lambda: running.fleet.replicas[0].losses == 1)
        await running.until_ready()
        assert not running.fleet.failed.done()


async def test_no_usable_replica_is_an_error_that_names_each_reason() -> None:
    async with front() as running:
        for fake in running.fakes:
            fake.ready = False
        await running.until_ready(0)
        await until(lambda: not any(one.usable for one in running.fleet.replicas))
        with pytest.raises(EngineError, match="replica 0: it loads; replica 1: it loads"):
            running.fleet.pick(NO_KEY)


async def test_a_rolling_update_replaces_each_replica_while_another_one_serves() -> None:
    async with front() as running:
        seen = []

        async def watch() -> None:
            while True:
                seen.append(sum(one.usable for one in running.fleet.replicas))
                await asyncio.sleep(0.005)

        watching = asyncio.create_task(watch())
        await roll(running.fleet)
        watching.cancel()
        assert [fake.starts_with for fake in running.fakes] == [2, 2]
        assert 1 in seen and 0 not in seen
        assert [one.losses for one in running.fleet.replicas] == [0, 0]


async def test_an_update_waits_for_a_replica_that_is_lost_meanwhile_and_loads() -> None:
    async with front() as running:
        first, second = running.fakes
        first.ready = False
        await until(lambda: not running.fleet.replicas[0].usable)
        rolling = asyncio.create_task(roll(running.fleet))
        await until(lambda: first.starts_with == 2)
        second.ready = False
        await second.kill()
        first.ready = True
        await running.until_ready(1)
        await asyncio.sleep(0.2)
        assert second.starts_with == 2
        second.ready = True
        await rolling
        assert [first.starts_with, second.starts_with] == [2, 3]


async def test_the_last_replica_that_serves_is_not_drained() -> None:
    async with front() as running:
        first, second = running.fakes
        first.ready = second.ready = False
        await until(lambda: not any(one.usable for one in running.fleet.replicas))
        rolling = asyncio.create_task(roll(running.fleet))
        await until(lambda: first.starts_with == 2)
        await second.kill()
        await until(lambda: second.starts_with == 2)
        first.ready = True
        await running.until_ready(1)
        await first.kill()
        first.ready, second.ready = False, True
        await running.until_ready(1)
        await asyncio.sleep(0.2)
        assert second.starts_with == 2 and running.fleet.replicas[1].usable
        first.ready = True
        await rolling
        assert second.starts_with == 3


async def test_a_replica_that_never_finishes_its_work_is_replaced_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with front(timing=replace(QUICK, drain=0.05)) as running:
        monkeypatch.setattr(running.fakes[0], "drain", asyncio.Event().wait)
        await asyncio.wait_for(roll(running.fleet), 20)
        assert [fake.starts_with for fake in running.fakes] == [2, 2]


async def test_a_replica_that_cannot_drain_is_replaced_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async def drain() -> None:
        raise EngineError("Ray: its node is gone")

    async with front() as running:
        monkeypatch.setattr(running.fakes[0], "drain", drain)
        await roll(running.fleet)
        assert [fake.starts_with for fake in running.fakes] == [2, 2]


async def test_an_update_mends_a_replica_that_could_not_be_started() -> None:
    async with front() as running:
        first, second = running.fakes
        second.wrong = "no such model"
        await second.kill()
        await until(lambda: running.fleet.replicas[1].problem == "no such model")
        rolling = asyncio.create_task(roll(running.fleet))
        second.wrong = ""
        await rolling
        await running.until_ready()
        assert first.starts_with == 2


async def test_an_update_stops_at_the_first_replica_that_does_not_start() -> None:
    async with front() as running:
        first, second = running.fakes
        first.wrong = "no such model"
        with pytest.raises(StartError, match="no such model"):
            await roll(running.fleet)
        assert second.starts_with == 1
        first.wrong = ""
        await running.until_ready()


async def test_a_first_start_that_fails_ends_the_front_with_its_reason() -> None:
    fakes = [FakeReplica(name) for name in "01"]
    for fake in fakes:
        fake.wrong = "no such model"
    async with Fleet({fake.name: fake for fake in fakes}, QUICK) as fleet:
        with pytest.raises(StartError, match="no such model"):
            await asyncio.wait_for(fleet.failed, 10)


class FaultyReplica(FakeReplica):
    async def start(self) -> ReplicaAddress:
        raise ZeroDivisionError("a fault of our own")


async def test_a_fault_of_the_front_itself_ends_it_and_is_not_lost_with_its_task() -> None:
    async with Fleet({"0": FaultyReplica("0")}, QUICK) as fleet:
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(fleet.failed, 10)


async def test_the_fronts_server_stops_when_no_replica_can_start() -> None:
    async with front() as running:
        running.fleet.failed.set_exception(StartError("no such model"))
        with pytest.raises(StartError, match="no such model"):
            await asyncio.wait_for(asyncio.shield(running.server._app[FATAL]), 10)
