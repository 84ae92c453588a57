"""Starts the servers of an experiment: clouds behind simulated networks, and edges that reach them through these."""

import argparse
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cli.demo import config_flags, free_ports
from cli.supervisor import CLOUD, EDGE, ServerProcess, Supervisor
from common.errors import StartError
from common.files.installation import logs
from experiments.harness.delay_proxy import DelayProxy
from experiments.setup.configurations import Needs


class AskedServer(StrEnum):
    """The server that a client sends its requests to."""

    EDGE = "edge"
    PLAIN_EDGE = "plain_edge"
    """An edge with F4 off."""
    CLOUD = "cloud"


@dataclass(frozen=True)
class EdgeSite:
    """An edge, its cloud and the network between them. `cloud_url` reaches the cloud without the network."""

    edge_url: str
    cloud_url: str
    network: DelayProxy


@dataclass(frozen=True)
class Site:
    """One cloud with one or two edges. `urls` reach the cloud through the network, `cloud_url` without it."""

    urls: dict[AskedServer, str]
    cloud_url: str
    network: DelayProxy


@contextlib.asynccontextmanager
async def site(
    args: argparse.Namespace, settings: Sequence[str], plain_edge: bool, report: Callable[[str], None]
) -> AsyncIterator[Site]:
    """Runs one cloud, an edge and, with `plain_edge`, an edge with F4 off; ready on entry.

    They have the config of the command line over `settings` (KEY=VALUE).
    """
    usual, plain = Needs(), Needs(edge=("communication.http_client.optimized=false",))
    async with fleet(args, settings, [usual, plain] if plain_edge else [usual], report) as sites:
        default = sites[usual]
        urls = {AskedServer.EDGE: default.edge_url, AskedServer.CLOUD: default.network.url}
        if plain_edge:
            urls[AskedServer.PLAIN_EDGE] = sites[plain].edge_url
        yield Site(urls, default.cloud_url, default.network)


@contextlib.asynccontextmanager
async def fleet(
    args: argparse.Namespace, settings: Sequence[str], wanted: Iterable[Needs], report: Callable[[str], None]
) -> AsyncIterator[dict[Needs, EdgeSite]]:
    """Runs the servers of all `wanted` needs, each once, on free ports; ready on entry, ended on exit.

    Their config is `settings` (KEY=VALUE), then the command line's, then their own needs. Raises StartError if a server
    does not start or ends early; the body is then cancelled.
    """
    edges = list(dict.fromkeys(wanted))
    clouds = list(dict.fromkeys(needs.cloud for needs in edges))
    ports = free_ports(len(clouds) + len(edges))
    common = [*_flags(settings), *config_flags(args)]
    async with contextlib.AsyncExitStack() as stack:
        networks = [await stack.enter_async_context(DelayProxy("127.0.0.1", port)) for port in ports[: len(clouds)]]
        servers = [
            _server("cloud", CLOUD, number, port, [*common, *_flags(own)])
            for number, (own, port) in enumerate(zip(clouds, ports, strict=False))
        ]
        for number, (needs, port) in enumerate(zip(edges, ports[len(clouds) :], strict=True)):
            network = networks[clouds.index(needs.cloud)]
            where = [f"communication.cloud_endpoint={network.url}", "communication.cloud_endpoints=[]"]
            flags = [*common, *_flags(needs.edge), *_flags(where)]
            servers.append(_server("edge", needs.program, number, port, flags))
        await stack.enter_async_context(Supervisor(servers, report).running())
        await stack.enter_async_context(_none_ends(servers))
        yield {
            needs: EdgeSite(servers[len(clouds) + number].url, servers[cloud].url, networks[cloud])
            for number, needs in enumerate(edges)
            for cloud in [clouds.index(needs.cloud)]
        }


@contextlib.asynccontextmanager
async def replicas(
    args: argparse.Namespace, settings: Sequence[str], clouds: int | Sequence[str], report: Callable[[str], None]
) -> AsyncIterator[tuple[str, list[str]]]:
    """Runs an edge that knows all of `clouds`, equal ones: a number to start, or the URLs of some that run already.

    The URLs of both; `settings` are as for `fleet`, whose errors this raises.
    """
    number = clouds if isinstance(clouds, int) else 0
    edge_port, *ports = free_ports(1 + number)
    common = [*_flags(settings), *config_flags(args)]
    started = [_server("cloud", CLOUD, at, port, common) for at, port in enumerate(ports)]
    urls = [cloud.url for cloud in started] or list(clouds if not isinstance(clouds, int) else ())
    where = [f"communication.cloud_endpoint={urls[0]}", f"communication.cloud_endpoints={json.dumps(urls[1:])}"]
    edge = _server("edge", EDGE, 0, edge_port, [*common, *_flags(where)])
    async with Supervisor([*started, edge], report).running(), _none_ends([*started, edge]):
        yield edge.url, urls


@contextlib.asynccontextmanager
async def _none_ends(servers: Sequence[ServerProcess]) -> AsyncIterator[None]:
    """Cancels the body and raises StartError when a server ends."""
    try:
        async with asyncio.TaskGroup() as group:
            watches = [group.create_task(_end_of(server)) for server in servers]
            yield
            for watch in watches:
                watch.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _end_of(server: ServerProcess) -> None:
    code = await server.exited()
    raise StartError(f"the {server.name} server ended in the middle with code {code}; its log is {server.log}")


def _server(name: str, program: str, number: int, port: int, flags: list[str]) -> ServerProcess:
    name = f"{name}-{number + 1}" if number else name
    flags = [*flags, "--host", "127.0.0.1", "--port", str(port)]
    return ServerProcess(name, program, f"http://127.0.0.1:{port}", flags, logs() / f"experiment-{name}.log")


def _flags(settings: Iterable[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]
