"""Starts both servers on free ports for a demonstration or a benchmark, and stops them at its end."""

import argparse
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

from cli.server_process import CLOUD, EDGE, ServerProcess
from cli.supervisor import Supervisor
from common.files.installation import logs


@contextlib.asynccontextmanager
async def demo_servers(
    args: argparse.Namespace, report: Callable[[str], None], with_cloud: bool = True
) -> AsyncIterator[tuple[str, str]]:
    """The URLs of a running edge and cloud; no cloud runs unless `with_cloud`. `report` gets progress lines.

    Raises StartError if one does not start.
    """
    cloud, edge = server_pair(args)
    async with Supervisor([cloud, edge] if with_cloud else [edge], report).running():
        yield edge.url, cloud.url


def server_pair(args: argparse.Namespace) -> tuple[ServerProcess, ServerProcess]:
    """A cloud and its edge on free ports, not started yet."""
    edge_port, cloud_port = free_ports(2)
    edge_url, cloud_url = f"http://127.0.0.1:{edge_port}", f"http://127.0.0.1:{cloud_port}"
    flags = [*config_flags(args), "--host", "127.0.0.1"]
    point = ["--set", f"communication.cloud_endpoint={cloud_url}"]
    return (
        ServerProcess("cloud", CLOUD, cloud_url, [*flags, "--port", str(cloud_port)], logs() / "cloud.log"),
        ServerProcess("edge", EDGE, edge_url, [*flags, "--port", str(edge_port), *point], logs() / "edge.log"),
    )


def config_flags(args: argparse.Namespace) -> list[str]:
    """The flags `--config` and `--set` of this command line, as arguments for the servers."""
    chosen = ["--config", args.config] if args.config else []
    return chosen + [part for flag in args.set for part in ("--set", flag)]


def free_ports(count: int) -> list[int]:
    """`count` different TCP ports of this machine that are unused now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
