"""A cloud behind a simulated network, and edges that reach it only through that. Knows nothing of their work."""

import argparse
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from common.demo import config_flags, free_ports
from common.supervisor import PROJECT, ServerProcess, Supervisor
from experiments.ways import Server
from tests.delay_proxy import DelayProxy


@dataclass(frozen=True)
class Site:
    """`urls`: where clients ask; the cloud's is through the network. `cloud_url` is the cloud itself."""

    urls: dict[Server, str]
    cloud_url: str
    network: DelayProxy


@contextlib.asynccontextmanager
async def site(
    args: argparse.Namespace, settings: Sequence[str], plain_edge: bool, report: Callable[[str], None]
) -> AsyncIterator[Site]:
    """Servers under the config of the command line, before which `settings` (KEY=VALUE) go; ready inside."""
    cloud_port, edge_port, plain_port = free_ports(3)
    async with DelayProxy("127.0.0.1", cloud_port) as network:
        set_up = [
            *_settings(settings),
            *config_flags(args),
            *_settings([f"communication.cloud_endpoint={network.url}"]),
        ]
        plain = _settings(["communication.http_client.optimized=false"])
        cloud = _server("cloud", "start_cloud.py", cloud_port, set_up)
        servers = {Server.CLOUD: cloud, Server.EDGE: _server("edge", "start_edge.py", edge_port, set_up)}
        if plain_edge:
            servers[Server.PLAIN_EDGE] = _server("plain-edge", "start_edge.py", plain_port, [*set_up, *plain])
        urls = {kind: server.url for kind, server in servers.items()} | {Server.CLOUD: network.url}
        async with Supervisor(list(servers.values()), report).running():
            yield Site(urls, cloud.url, network)


def _server(name: str, script: str, port: int, flags: list[str]) -> ServerProcess:
    flags = [*flags, "--host", "127.0.0.1", "--port", str(port)]
    return ServerProcess(name, script, f"http://127.0.0.1:{port}", flags, PROJECT / "logs" / f"experiment-{name}.log")


def _settings(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]
