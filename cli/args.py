"""What every program's command line shares: config flags, logging, errors in one line. Knows no program."""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from common import config
from common.config_schema import Config
from common.errors import FrameworkError


def config_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that choose and override the config."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--config", metavar="FILE", help="YAML file (default: config/config.yaml)")
    made.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="override one key, e.g. edge.server.port=9000"
    )
    return made


def load_config(args: argparse.Namespace, **flags: object) -> Config:
    """The config that the command line asks for; `flags` are KEY (with __ for dots) and value, None if not given."""
    given = [f"{key.replace('__', '.')}={value}" for key, value in flags.items() if value is not None]
    return config.load(args.config, [*args.set, *given])


def client_config(description: str) -> Config:
    """The command line of a small client program: `--edge` and `--cloud` say where the servers are, else the config."""
    made = config_parser(description)
    made.add_argument("--edge", metavar="URL", help="the edge server (default: communication.edge_endpoint)")
    made.add_argument("--cloud", metavar="URL", help="the cloud server (default: communication.cloud_endpoint)")
    args = made.parse_args()
    return load_config(args, communication__edge_endpoint=args.edge, communication__cloud_endpoint=args.cloud)


def run_program(
    program: Coroutine[Any, Any, None], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> int:
    """Runs a program to its end and returns its exit code; a FrameworkError becomes one line on stderr and code 1.

    The first Ctrl-C or SIGTERM cancels the program (code 130); what it then cleans up is not disturbed by another.
    """
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_cancelled_by_signals(program))
    except FrameworkError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        return 130
    return 0


def run_sync_program(program: Callable[[], None]) -> int:
    """The same for a program that has no event loop; what the system refuses is one line, too."""
    try:
        program()
    except (FrameworkError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


async def _cancelled_by_signals(program: Coroutine[Any, Any, None]) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(program)
    signals = signal.SIGINT, signal.SIGTERM

    def cancel() -> None:
        for number in signals:
            loop.add_signal_handler(number, lambda: None)
        task.cancel()

    for number in signals:
        loop.add_signal_handler(number, cancel)
    await task


def set_up_logging(level: str) -> None:
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("stamina").setLevel(logging.ERROR)  # a retry is not news; the failure after the last one is
