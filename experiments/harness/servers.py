"""Starts the servers of an experiment: clouds behind simulated networks, and edges that reach them through these."""

import argparse
import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from cli.demo import config_flags, free_ports
from cli.server_process import CLOUD, EDGE, ServerProcess, ending
from cli.supervisor import Supervisor
from common.errors import StartError
from common.files.installation import logs
from common.http.client import HTTPClient
from experiments.harness.delay_proxy import DelayProxy
from experiments.setup.configurations import Needs


class AskedServer(StrEnum):
    """The server that a client sends its requests to."""

    EDGE = "edge"
    PLAIN_EDGE = "plain_edge"
    """An edge with F4 off."""
    CLOUD = "cloud"
    NGRAM = "ngram"
    """vLLM without this project, which speculates with n-grams."""
    DRAFT_MODEL = "draft-model"
    """vLLM without this project, which has the edge's model beside it to speculate with."""
    LLAMA_SERVER = "llama-server"
    """llama.cpp's server with both models."""


PEERS = (AskedServer.NGRAM, AskedServer.DRAFT_MODEL, AskedServer.LLAMA_SERVER)
"""What a user might run in place of an edge and its cloud."""
PEER_PROGRAM = "benchmarks.setup.peer"
"""What starts one of them as a process of its own: no import, since it needs torch and vLLM."""


class CloudSide(NamedTuple):
    """A cloud as it is reached without the network, and the network before it."""

    url: str
    network: DelayProxy


class Pinning(NamedTuple):
    """The cores that clouds and peers may run on, and those of edges and clients; empty: all."""

    clouds: Collection[int] = ()
    edges: Collection[int] = ()


NOT_PINNED = Pinning()


def pinned_apart() -> Pinning:
    """Edges and clients have the last core, clouds and peers the others."""
    cores = sorted(os.sched_getaffinity(0))
    return Pinning(cores[:-1] or cores, cores[-1:])


@dataclass(frozen=True)
class EdgeSite:
    """An edge, its cloud and the network between them. `cloud_url` reaches the cloud without the network."""

    edge_url: str
    cloud_url: str
    network: DelayProxy


@dataclass(frozen=True)
class Site:
    """One cloud with one or two edges, and `peers`.

    `urls` reach the clouds through their networks, `cloud_url` reaches the cloud without one.
    """

    urls: dict[AskedServer, str]
    cloud_url: str
    network: DelayProxy
    peers: dict[AskedServer, CloudSide] = field(default_factory=dict)

    def behind(self, server: AskedServer) -> CloudSide:
        """The cloud that works for `server`."""
        return self.peers.get(server, CloudSide(self.cloud_url, self.network))

    @property
    def clouds(self) -> list[CloudSide]:
        """All of them, the peers included."""
        return [CloudSide(self.cloud_url, self.network), *self.peers.values()]


@contextlib.asynccontextmanager
async def site(
    args: argparse.Namespace,
    settings: Sequence[str],
    plain_edge: bool,
    report: Callable[[str], None],
    peers: Sequence[AskedServer] = (),
    pinning: Pinning = NOT_PINNED,
) -> AsyncIterator[Site]:
    """Runs one cloud, an edge, with `plain_edge` an edge with F4 off, and `peers`; ready on entry.

    They have the config of the command line over `settings` (KEY=VALUE).
    """
    usual, plain = Needs(), Needs(edge=("communication.http_client.optimized=false",))
    async with (
        fleet(args, settings, [usual, plain] if plain_edge else [usual], report, pinning) as sites,
        _peers(args, settings, peers, report, pinning) as others,
    ):
        default = sites[usual]
        urls = {AskedServer.EDGE: default.edge_url, AskedServer.CLOUD: default.network.url}
        if plain_edge:
            urls[AskedServer.PLAIN_EDGE] = sites[plain].edge_url
        urls |= {peer: side.network.url for peer, side in others.items()}
        yield Site(urls, default.cloud_url, default.network, others)


class PeerProcess(ServerProcess):
    """A server that is not of this project: it is ready when `/health` says so."""

    class CLIENT(HTTPClient):
        READY = "/health"


@contextlib.asynccontextmanager
async def _peers(
    args: argparse.Namespace,
    settings: Sequence[str],
    wanted: Sequence[AskedServer],
    report: Callable[[str], None],
    pinning: Pinning,
) -> AsyncIterator[dict[AskedServer, CloudSide]]:
    """The peers, each with a network of its own; as `fleet`."""
    flags = [*_flags(settings), *config_flags(args)]
    started: dict[AskedServer, PeerProcess] = {}
    for peer, port in zip(wanted, free_ports(len(wanted)), strict=True):
        own, log = [peer.value, *flags, "--port", str(port)], logs() / f"experiment-{peer.value}.log"
        started[peer] = PeerProcess(peer.value, PEER_PROGRAM, f"http://127.0.0.1:{port}", own, log, pinning.clouds)
    async with contextlib.AsyncExitStack() as stack:
        for server in started.values():
            report(f"starting {server.name} at {server.url}")
            stack.push_async_callback(server.stop)
            await server.start()
        for server in started.values():
            await server.wait_ready(report)
        await stack.enter_async_context(_none_ends([*started.values()]))
        networks = [
            await stack.enter_async_context(DelayProxy("127.0.0.1", int(server.url.rpartition(":")[2])))
            for server in started.values()
        ]
        yield {
            peer: CloudSide(server.url, network)
            for (peer, server), network in zip(started.items(), networks, strict=True)
        }


@contextlib.asynccontextmanager
async def fleet(
    args: argparse.Namespace,
    settings: Sequence[str],
    wanted: Iterable[Needs],
    report: Callable[[str], None],
    pinning: Pinning = NOT_PINNED,
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
            _server("cloud", CLOUD, number, port, [*common, *_flags(own)], pinning.clouds)
            for number, (own, port) in enumerate(zip(clouds, ports, strict=False))
        ]
        for number, (needs, port) in enumerate(zip(edges, ports[len(clouds) :], strict=True)):
            network = networks[clouds.index(needs.cloud)]
            where = [f"communication.cloud_endpoint={network.url}", "communication.cloud_endpoints=[]"]
            flags = [*common, *_flags(needs.edge), *_flags(where)]
            servers.append(_server("edge", needs.program, number, port, flags, pinning.edges))
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
    raise StartError(f"the {server.name} server ended in the middle with {ending(code)}; its log is {server.log}")


def _server(
    name: str, program: str, number: int, port: int, flags: list[str], cores: Collection[int] = ()
) -> ServerProcess:
    name = f"{name}-{number + 1}" if number else name
    flags = [*flags, "--host", "127.0.0.1", "--port", str(port)]
    return ServerProcess(name, program, f"http://127.0.0.1:{port}", flags, logs() / f"experiment-{name}.log", cores)


def _flags(settings: Iterable[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]
