"""Actors of a real Ray with the toy model: killed, stopped and replaced ones; without Ray these tests are skipped."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace

import pytest
import pytest_asyncio

from cloud.replicas.actor import ReplicaSpec
from cloud.replicas.fleet import Fleet, FleetTiming
from cloud.replicas.updates import roll
from common.cloud_client.stream import CloudStream
from common.config_cloud import CloudConfig, RayConfig
from common.config_values import ServerConfig
from common.errors import EngineError, StartError
from common.http.client import HTTPClient
from common.http_server import HTTPServer
from common.protocol.stream_frames import StartFrame
from tests.cloud.replicas.test_stream_relay import PROMPT, TOKENS, truth
from tests.cloud.replicas.toy_actor import ToyActor

pytest.importorskip("ray", reason="Ray is not installed: make test-ray")

from ray.exceptions import RaySystemError

from cloud.replicas import ray_process
from cloud.replicas.front import build_app
from cloud.replicas.ray_process import RayReplica, ray_cluster, shares

pytestmark = [pytest.mark.long, pytest.mark.asyncio(loop_scope="session")]

SPEC = ReplicaSpec("toy", {}, CloudConfig(), "INFO", False)
TIMING = FleetTiming(probe=0.1, patience=2.0, silences=2, drain=5.0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


class ToyService:
    """A front with toy replicas on Ray."""

    def __init__(self, fleet: Fleet, processes: list[RayReplica], url: str) -> None:
        self.fleet, self.processes, self.url = fleet, processes, url

    async def ready(self) -> None:
        await until(lambda: all(one.usable for one in self.fleet.replicas))

    def pids(self) -> list[int]:
        return [one.address.pid for one in self.fleet.replicas]

    async def stream(self, number: signal.Signals | None = None) -> list[int]:
        tokens: list[int] = []
        start = StartFrame(token_ids=PROMPT, max_tokens=TOKENS)
        async with HTTPClient(self.url) as client, CloudStream(client, start) as stream:
            async for frame in stream:
                tokens += frame.token_ids
                if number and len(tokens) == 5:
                    (busy,) = [one for one in self.fleet.replicas if one.in_flight]
                    os.kill(busy.address.pid, number)
        return tokens


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def service() -> AsyncIterator[ToyService]:
    with ray_cluster(RayConfig(), 2):
        processes = [RayReplica(name, SPEC, ToyActor) for name in "01"]
        fleet = Fleet(dict(zip("01", processes, strict=True)), TIMING)
        server = HTTPServer(build_app(fleet, ServerConfig(host="127.0.0.1")), "127.0.0.1", 0)
        await server.start()
        made = ToyService(fleet, processes, f"http://127.0.0.1:{server.port}")
        await made.ready()
        yield made
        await server.stop()


@pytest.mark.parametrize(
    ("cores", "replicas", "shared"),
    [([0, 1], 2, [[0], [1]]), (range(8), 3, [[0, 1], [2, 3, 4], [5, 6, 7]]), ([4], 2, [[], []])],
)
async def test_replicas_of_one_machine_share_its_cores(
    cores: Sequence[int], replicas: int, shared: list[list[int]]
) -> None:
    assert shares(cores, replicas) == shared


async def test_the_front_knows_what_the_actors_caches_hold(service: ToyService) -> None:
    await until(lambda: set(service.fleet.index.longest_prefix([5] * 17).values()) == {16})
    assert len(service.fleet.index.replicas()) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_dead_or_hung_actor_is_started_again_and_its_stream_goes_on(
    service: ToyService, number: signal.Signals
) -> None:
    before = service.pids()
    assert await service.stream(number) == truth(PROMPT)
    await until(lambda: len(set(before) & set(service.pids())) == 1)
    await service.ready()
    assert await service.stream() == truth(PROMPT)


async def test_an_update_replaces_each_actor(service: ToyService) -> None:
    before = service.pids()
    await roll(service.fleet)
    await service.ready()
    assert not set(before) & set(service.pids())


async def test_an_update_replaces_an_actor_that_stands_still(
    service: ToyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_process, "STOP_SECONDS", 1.0)
    before = service.pids()
    os.kill(before[0], signal.SIGSTOP)
    await asyncio.wait_for(roll(service.fleet), 60)
    await service.ready()
    assert not set(before) & set(service.pids())
    await until(lambda: not os.path.exists(f"/proc/{before[0]}"))


async def test_an_error_of_rays_is_ours_behind_its_process() -> None:
    def fail() -> None:
        raise RaySystemError("its node is gone")

    replica = RayReplica("0", SPEC, ToyActor)
    replica._actor = SimpleNamespace(drain=SimpleNamespace(remote=fail))
    with pytest.raises(EngineError, match="its node is gone"):
        await replica.drain()


@pytest.mark.parametrize(("model", "reason"), [("wrong", "no such model"), ("refused", "engine_args.x: no such arg")])
async def test_an_update_that_cannot_start_is_taken_back(service: ToyService, model: str, reason: str) -> None:
    for process in service.processes:
        process.spec = SPEC._replace(model=model)
    with pytest.raises(StartError, match=reason):
        await roll(service.fleet)
    for process in service.processes:
        process.spec = SPEC
    await service.ready()
    assert await service.stream() == truth(PROMPT)
