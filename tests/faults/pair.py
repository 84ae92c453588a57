"""The demo pair under its supervisor, as a user starts it: each process by its place, and what is left of them."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

from cli.demo import free_ports
from cli.server_process import CLOUD, EDGE
from common.errors import EndpointError, RequestError
from common.files.installation import PROJECT
from common.http.client import HTTPClient
from experiments.harness.delay_proxy import DelayProxy


class FaultPlace(StrEnum):
    """Where a fault happens."""

    EDGE = "edge"
    CLOUD = "cloud"
    """The cloud's web server."""
    ENGINE = "engine"
    """vLLM's process that computes."""
    SUPERVISOR = "supervisor"


class RunningPair:
    """A running pair; the edge reaches its cloud through `network`."""

    def __init__(self, process: asyncio.subprocess.Process, edge: str, cloud: str, network: DelayProxy) -> None:
        self.edge, self.cloud, self.network = HTTPClient(edge), HTTPClient(cloud), network
        self._process = process
        self._sessions = {process.pid}
        """Ids of the sessions of the supervisor, which its servers share, and of the shells that watch these."""

    def processes(self) -> list[psutil.Process]:
        """All processes of the pair that are alive, whoever is their parent now."""
        with suppress(psutil.Error):
            self._sessions |= {child.pid for child in psutil.Process(self._process.pid).children()}
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) in self._sessions and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def process(self, place: FaultPlace) -> psutil.Process | None:
        """The process at `place`; None while there is none."""
        if place is FaultPlace.SUPERVISOR:
            return next((one for one in self.processes() if one.pid == self._process.pid), None)
        for process in self.processes():
            with suppress(psutil.Error):
                if _is_at(place, process):
                    return process
        return None

    async def until_ready(self) -> None:
        """Waits until both servers answer again, and the edge asks its cloud."""
        while not (await _is_ready(self.cloud) and await _is_ready(self.edge) and await self._uses_cloud()):
            await asyncio.sleep(0.3)

    async def _uses_cloud(self) -> bool:
        stats: dict[str, Any] = await self.edge.get("/stats", dict)
        return all(one["breaker"]["state"] == "closed" for one in stats["clouds"]["endpoints"].values())

    async def until_gone(self) -> None:
        """Waits until no process of the pair is left."""
        while await asyncio.to_thread(self.processes):
            await asyncio.sleep(0.2)

    async def stop(self) -> None:
        """Ends all of it, whatever state it is in."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), 60)
        for process in self.processes():
            process.kill()
        await self._process.wait()
        await self.edge.close()
        await self.cloud.close()


def _is_at(place: FaultPlace, process: psutil.Process) -> bool:
    match place:
        case FaultPlace.EDGE:
            return EDGE in process.cmdline()
        case FaultPlace.CLOUD:
            return CLOUD in process.cmdline()
        case _:
            return process.name().startswith("VLLM::Worker")


async def _is_ready(client: HTTPClient) -> bool:
    try:
        await client.check_ready()
    except (EndpointError, RequestError):
        return False
    return True


@asynccontextmanager
async def running_pair(folder: Path, *settings: str) -> AsyncIterator[RunningPair]:
    """A pair in float32, so that a lossless answer is always the same; `settings` are as for --set."""
    edge_port, cloud_port = free_ports(2)
    async with DelayProxy("127.0.0.1", cloud_port) as network:
        own = [
            f"edge.server.port={edge_port}",
            f"cloud.server.port={cloud_port}",
            f"communication.cloud_endpoint={network.url}",
            "cloud.model.dtype=float32",
            "cloud.engine_args.kv_cache_memory_bytes=67108864",
            "communication.breaker.probe_seconds=1",
            "communication.http_client.first_byte_timeout=3",
        ]
        flags = [word for setting in (*own, *settings) for word in ("--set", setting)]
        with (folder / "pair.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(PROJECT / "main.py"), "--mode", "server", *flags),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        urls = f"http://127.0.0.1:{edge_port}", f"http://127.0.0.1:{cloud_port}"
        pair = RunningPair(process, *urls, network)
        try:
            await pair.until_ready()
            yield pair
        finally:
            await pair.stop()
