"""One replica: a cloud server with its engine, in a process of Ray's."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import NamedTuple

import msgspec

from cloud.replicas.block_changes import BlockChange, FollowedKVCache
from cloud.replicas.replica import ReplicaAddress
from common.config_cloud import CloudConfig
from common.errors import FrameworkError
from common.http_server import FATAL, HTTPServer
from common.tracing.export import exported

SERVER = "cloud replica"


class ReplicaSpec(NamedTuple):
    """What a replica runs: the path of its model, vLLM's engine arguments, and the configuration of the cloud."""

    model: str
    engine_args: dict[str, object]
    cloud: CloudConfig
    log_level: str
    traces: bool


class ReplicaActor:
    """The server and its engine, which live as long as the actor. Ray calls its methods on one event loop."""

    def __init__(self, spec: ReplicaSpec, host: str, cores: list[int]) -> None:
        """It listens on `host`; empty: on the address by which its machine is known in the cluster. It runs on `cores`;
        none: on all of them."""
        if cores:
            os.sched_setaffinity(0, cores)
        import ray  # the front imports this module, too, before it knows whether Ray is there, and never needs vLLM

        from cloud.cloud_server import build_app
        from cloud.engine.engine import CloudEngine

        logging.basicConfig(level=spec.log_level, format="%(levelname)s %(name)s: %(message)s")
        host = host or ray.util.get_node_ip_address()
        server = msgspec.structs.replace(spec.cloud.server, host=host, port=0, cors_origins=[])
        config = msgspec.structs.replace(spec.cloud, server=server)
        engine = CloudEngine(spec.model, config.draft_verifier.max_draft_tokens, spec.engine_args)
        self._cache = engine.kv_cache = FollowedKVCache()
        self._app = build_app(engine, config)
        self._server = HTTPServer(self._app, host, 0, SERVER, config.server.drain_seconds)
        self._exported = ExitStack()
        self._exported.enter_context(exported("edgecloud-cloud", spec.traces))
        self._starting: asyncio.Task[None] | None = None

    async def start(self) -> ReplicaAddress:
        """Opens the port, once; the engine starts meanwhile."""
        self._starting = self._starting or asyncio.create_task(self._server.start())
        await self._starting
        return ReplicaAddress(f"http://{self._server.host}:{self._server.port}", os.getpid())

    async def failed(self) -> str:
        """Returns why the server cannot go on, if it ever cannot."""
        await asyncio.wait([self._app[FATAL]])
        error = self._app[FATAL].exception()
        return error.message if isinstance(error, FrameworkError) else repr(error)

    async def changes(self) -> AsyncGenerator[list[BlockChange], None]:
        """See FollowedKVCache."""
        async for changes in self._cache.changes():
            yield changes

    async def drain(self) -> None:
        """See HTTPServer."""
        await self._server.drain()

    async def stop(self) -> None:
        """Ends the server and its engine with all processes."""
        await self._server.stop()
        self._exported.close()
