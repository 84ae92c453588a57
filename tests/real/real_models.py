"""Real models on this machine, for the tests that `make test-real` runs: where they are, and a pair of servers."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.demo import free_ports
from cli.server_process import ServerProcess
from cli.supervisor import Supervisor
from common.config_schema import HttpClientConfig
from common.http.client import HTTPClient

ROOT = Path(os.environ.get("EDGECLOUD_REAL", "~/.cache/edgecloud/real")).expanduser()
CLIENT = HttpClientConfig(timeout=1200.0, max_retries=0)
"""A float32 cloud of 1.5B parameters on two cores takes minutes for a prompt that fills the context."""
CLOUD = "cloud.model.dtype=float32", "cloud.engine_args.kv_cache_memory_bytes=1073741824"
"""Equal to the last bit; a KV cache of 1 GiB holds four whole contexts, and leaves memory for other work."""
SAME, OTHER = (f"config/presets/{name}.yaml" for name in ("qwen2.5-coder", "smollm2-qwen2.5-coder"))
"""The presets of the two pairs: one vocabulary, and two."""


def needs(*names: str) -> list[pytest.MarkDecorator]:
    """Marks a test that needs these files or folders of ROOT."""
    missing = [name for name in names if not (ROOT / name).exists()]
    reason = f"{', '.join(missing)} not in {ROOT}; EDGECLOUD_REAL names another folder"
    return [pytest.mark.real, pytest.mark.skipif(bool(missing), reason=reason)]


@dataclass
class RealServers:
    """A cloud and an edge for each pair, all processes of their own; `cloud_process` can be killed."""

    cloud: HTTPClient
    edges: dict[str, HTTPClient]
    cloud_process: ServerProcess


@asynccontextmanager
async def real_servers(folder: Path, presets: Sequence[str]) -> AsyncIterator[RealServers]:
    """One cloud, in float32, for the edges of all `presets`; logs are in `folder`."""
    cloud_port, *edge_ports = free_ports(1 + len(presets))
    url = f"http://127.0.0.1:{cloud_port}"
    cloud = _server("cloud", "start_cloud.py", cloud_port, presets[0], folder, *CLOUD)
    edges = [
        _server(f"edge-{number}", "start_edge.py", port, preset, folder, f"communication.cloud_endpoint={url}")
        for number, (port, preset) in enumerate(zip(edge_ports, presets, strict=True))
    ]
    supervisor = Supervisor([cloud, *edges])
    async with supervisor.running(), HTTPClient(url, CLIENT) as client:
        clients = [HTTPClient(edge.url, CLIENT) for edge in edges]
        try:
            yield RealServers(client, dict(zip(presets, clients, strict=True)), cloud)
        finally:
            for one in clients:
                await one.close()


def _server(name: str, program: str, port: int, preset: str, folder: Path, *settings: str) -> ServerProcess:
    flags = ["--config", preset, *(flag for one in (f"models.root={ROOT}", *settings) for flag in ("--set", one))]
    flags += ["--host", "127.0.0.1", "--port", str(port)]
    return ServerProcess(name, program, f"http://127.0.0.1:{port}", flags, folder / f"{name}.log")
