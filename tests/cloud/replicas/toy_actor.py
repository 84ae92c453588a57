"""An actor like a replica's, with the toy model in place of an engine."""

import asyncio
import os
from collections.abc import AsyncGenerator

from benchmarks.fake_cloud import FakeCloud
from cloud.replicas.actor import ReplicaSpec
from cloud.replicas.block_changes import BlockChange, FollowedKVCache
from cloud.replicas.replica import ReplicaAddress
from common.errors import ConfigError
from common.http_server import HTTPServer


class ToyActor:
    """Serves `FakeCloud`; a `model` called "wrong" fails after its port is open, as a model that cannot be loaded, and
    one called "refused" before, as an argument that does not exist."""

    def __init__(self, spec: ReplicaSpec, host: str, cores: list[int]) -> None:
        if spec.model == "refused":
            raise ConfigError("cloud.engine_args.x: no such argument")
        self._spec = spec
        assert not cores
        self._cloud = FakeCloud()
        self._cloud.pause = 0.02
        self._cache = FollowedKVCache()
        self._server = HTTPServer(self._cloud.app(), host, 0, drain_seconds=2)

    async def start(self) -> ReplicaAddress:
        await self._server.start()
        self._cache.store("0", [1], None, [5] * 16, [()])
        return ReplicaAddress(f"http://{self._server.host}:{self._server.port}", os.getpid())

    async def failed(self) -> str:
        if self._spec.model != "wrong":
            await asyncio.Event().wait()
        return "no such model"

    async def changes(self) -> AsyncGenerator[list[BlockChange], None]:
        async for changes in self._cache.changes():
            yield changes

    async def drain(self) -> None:
        await self._server.drain()

    async def stop(self) -> None:
        await self._server.stop()
