"""Runs a cloud, of one replica or several on Ray, and with it an edge, for the benchmarks of this folder."""

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from cli.demo import config_flags, free_ports
from cli.server_process import CLOUD, EDGE, ServerProcess
from cli.supervisor import Supervisor
from common.files.installation import logs
from common.http.client import HTTPClient

SMALL = ("cloud.model.dtype=float32", f"cloud.engine_args.kv_cache_memory_bytes={64 << 20}")
"""Exact, and small enough for several engines on one machine; a config may say otherwise."""


def cloud_process(args: argparse.Namespace, replicas: int, *settings: str) -> ServerProcess:
    """A cloud of so many replicas on a free port; `settings` (KEY=VALUE) come before the command line's."""
    (port,) = free_ports(1)
    own = (*SMALL, *settings, f"cloud.replicas={replicas}")
    flags = [*_flags(own), *config_flags(args), "--host", "127.0.0.1", "--port", str(port)]
    return ServerProcess("cloud", CLOUD, f"http://127.0.0.1:{port}", flags, logs() / f"cloud-of-{replicas}.log")


def edge_process(args: argparse.Namespace, cloud: ServerProcess) -> ServerProcess:
    """An edge that knows no other cloud than this one."""
    (port,) = free_ports(1)
    flags = [*_flags([f"communication.cloud_endpoint={cloud.url}"]), *config_flags(args)]
    where = ["--host", "127.0.0.1", "--port", str(port)]
    return ServerProcess("edge", EDGE, f"http://127.0.0.1:{port}", [*flags, *where], logs() / "edge-of-replicas.log")


@asynccontextmanager
async def running(servers: list[ServerProcess], report: Callable[[str], None]) -> AsyncIterator[None]:
    """All of them, with all their replicas ready."""
    async with Supervisor(servers, report).running():
        for server in servers:
            async with HTTPClient(server.url) as client:
                await until_all_ready(client)
        yield


async def until_all_ready(client: HTTPClient) -> None:
    """Returns when each replica of a cloud takes requests."""
    while any(one["state"] != "ready" for one in (await replicas_of(client)).values()):
        await asyncio.sleep(0.2)


async def replicas_of(client: HTTPClient) -> dict[str, dict[str, Any]]:
    """The part of each replica in /stats; empty where there is but one."""
    stats: dict[str, Any] = await client.get("/stats", dict)
    replicas: dict[str, dict[str, Any]] = stats.get("replicas", {})
    return replicas


def _flags(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]
