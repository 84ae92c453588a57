"""Runs both servers: edgecloud serve, or python main.py --mode server."""

import argparse
import asyncio
import contextlib
from functools import partial

from cli.args import config_parser, run_with_config, set_up_logging
from cli.demo import config_flags
from cli.server_process import CLOUD, EDGE, ServerProcess
from cli.supervisor import Supervisor
from common.config_schema import CommunicationConfig, Config


def parser() -> argparse.ArgumentParser:
    return config_parser("Start both servers, restart one that dies, until Ctrl-C.")


def run(args: argparse.Namespace) -> int:
    return run_with_config(args, partial(serve, args))


async def serve(args: argparse.Namespace, config: Config) -> None:
    """Both servers until Ctrl-C or SIGTERM."""
    await supervise(config, *both(config, config_flags(args)))


def both(config: Config, flags: list[str]) -> tuple[ServerProcess, ServerProcess]:
    """The cloud, and an edge that asks it, unless the config names another cloud than the usual."""
    edge, cloud = config.edge.server, cloud_process(config, flags)
    usual = config.communication.cloud_endpoint == CommunicationConfig().cloud_endpoint
    point = ["--set", f"communication.cloud_endpoint={cloud.url}"] if usual else []
    return cloud, ServerProcess("edge", EDGE, f"http://{edge.host}:{edge.port}", [*flags, *point])


def cloud_process(config: Config, flags: list[str]) -> ServerProcess:
    """The cloud server of the config, to be started with these flags."""
    return ServerProcess("cloud", CLOUD, f"http://{config.cloud.server.host}:{config.cloud.server.port}", flags)


async def supervise(config: Config, *servers: ServerProcess) -> None:
    """Starts the servers, restarts one that dies, and stops all on Ctrl-C or SIGTERM."""
    set_up_logging(config.logging.level)
    with contextlib.suppress(asyncio.CancelledError):
        async with Supervisor([*servers]).running():
            await asyncio.Event().wait()
