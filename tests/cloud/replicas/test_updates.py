"""SIGHUP: each replica is replaced by one that has the configuration as it is now, or none of them."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from cloud.replicas.actor import ReplicaSpec
from cloud.replicas.updates import Updates
from common.config_cloud import AdmissionConfig, CloudConfig, CloudKeyConfig
from common.config_values import Secret, ServerConfig
from common.errors import ConfigError
from tests.cloud.replicas.fake_replica import FakeReplica, RunningFront, front


def configured(port: int, key: str, max_requests: int) -> CloudConfig:
    admission = AdmissionConfig(max_requests=max_requests, keys=[CloudKeyConfig(Secret(key))])
    return CloudConfig(server=ServerConfig(port=port), admission=admission)


OLD = ReplicaSpec("old", {}, configured(1, "old", 5), "INFO", False)
NEW = OLD._replace(model="new", cloud=configured(2, "new", 6))


@asynccontextmanager
async def updated_at_sighup(read_again: Callable[[], ReplicaSpec]) -> AsyncIterator[RunningFront]:
    async with front() as running:
        for fake in running.fakes:
            fake.spec = OLD
        updates = Updates(running.fleet, running.fakes, read_again)
        handling = updates.at_sighup(running.server._app)
        await anext(handling)
        try:
            yield running
        finally:
            with pytest.raises(StopAsyncIteration):
                await anext(handling)


async def started(fakes: list[FakeReplica], times: list[int]) -> None:
    async with asyncio.timeout(20):
        while [fake.starts_with for fake in fakes] != times:
            await asyncio.sleep(0.01)


async def test_each_replica_is_started_anew_with_what_is_read_then() -> None:
    async with updated_at_sighup(lambda: NEW) as running:
        os.kill(os.getpid(), signal.SIGHUP)
        await started(running.fakes, [2, 2])
        assert [fake.spec.model for fake in running.fakes] == ["new", "new"]
        assert [fake.spec.cloud.admission.max_requests for fake in running.fakes] == [6, 6]


async def test_address_and_keys_stay_those_of_the_front_wherever_they_are_written() -> None:
    async with updated_at_sighup(lambda: NEW) as running:
        os.kill(os.getpid(), signal.SIGHUP)
        await started(running.fakes, [2, 2])
        for fake in running.fakes:
            assert fake.spec.cloud.server == OLD.cloud.server
            assert [key.reveal() for key in fake.spec.cloud.keys] == ["old"]


async def test_a_configuration_that_is_wrong_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def wrong() -> ReplicaSpec:
        raise ConfigError("cloud.model.dtype: no such format")

    async with updated_at_sighup(wrong) as running:
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(20):
            while "no update: cloud.model.dtype: no such format" not in caplog.text:
                await asyncio.sleep(0.01)
        assert [fake.starts_with for fake in running.fakes] == [1, 1]
        assert [fake.spec.model for fake in running.fakes] == ["old", "old"]


async def test_a_fault_in_an_update_takes_it_back_and_the_next_one_is_free_of_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stop() -> None:
        raise ZeroDivisionError("a fault of our own")

    async with updated_at_sighup(lambda: NEW) as running:
        first = running.fakes[0]
        with monkeypatch.context() as broken:
            broken.setattr(first, "stop", stop)
            os.kill(os.getpid(), signal.SIGHUP)
            async with asyncio.timeout(20):
                while "a fault of our own" not in caplog.text:
                    await asyncio.sleep(0.01)
        assert [fake.spec.model for fake in running.fakes] == ["old", "old"]
        assert not running.replica(first).draining
        await first.kill()
        await running.until_ready()
        os.kill(os.getpid(), signal.SIGHUP)
        await started(running.fakes, [3, 2])
        assert [fake.spec.model for fake in running.fakes] == ["new", "new"]


async def test_a_replica_that_does_not_start_is_started_as_it_was_and_the_others_stay() -> None:
    async with updated_at_sighup(lambda: NEW) as running:
        first, second = running.fakes
        first.wrong = "no such model"
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(20):
            while first.starts_with < 2 or first.spec.model == "new":
                await asyncio.sleep(0.01)
        first.wrong = ""
        await running.until_ready()
        assert second.starts_with == 1
        assert second.spec.model == "old"
