"""What all programs share: config flags, logging, exit codes, and errors printed in one line."""

import argparse
import asyncio
import logging
import math
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from common import config
from common.config_schema import Config
from common.errors import FrameworkError, RequestError
from common.tracing.context import ShortLines, TracedFormatter


def plain_parser(description: str) -> argparse.ArgumentParser:
    """A parser whose usage line names the program as it was started: a file, or `python -m` and a module."""
    module = sys.modules["__main__"].__spec__
    program = f"python -m {module.name.removesuffix('.__main__')}" if module else None
    return argparse.ArgumentParser(prog=program, description=description)


def config_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags `--config` and `--set`, which `load_config` reads."""
    parser = plain_parser(description)
    parser.add_argument("--config", metavar="FILE", help="config file in YAML (default: config/config.yaml)")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override one key of the config, e.g. edge.server.port=9000; may be repeated",
    )
    return parser


def count(text: str) -> int:
    """The type of a flag that takes a whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, not {text!r}")
    return int(text)


def amount(text: str) -> float:
    """The type of a flag that takes a number of 0 or more; infinity is none."""
    return _number(text, "0 or more", lambda value: value >= 0)


def positive(text: str) -> float:
    """The same for a number above 0."""
    return _number(text, "above 0", lambda value: value > 0)


def _number(text: str, wanted: str, fits: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and fits(value)):
        raise argparse.ArgumentTypeError(f"must be a number {wanted}, not {text!r}")
    return value


def load_config(args: argparse.Namespace, **flags: object) -> Config:
    """The config of this command line. `flags`: more keys to set, with __ for dots in their names; None: not set."""
    given = [f"{key.replace('__', '.')}={value}" for key, value in flags.items() if value is not None]
    return config.load(args.config, [*args.set, *given])


def client_config(description: str) -> Config:
    """The config of a small client program, whose flags `--edge` and `--cloud` override the servers' URLs."""
    parser = config_parser(description)
    parser.add_argument("--edge", metavar="URL", help="the edge server (default: communication.edge_endpoint)")
    parser.add_argument("--cloud", metavar="URL", help="the cloud server (default: communication.cloud_endpoint)")
    args = parser.parse_args()
    return load_config(args, communication__edge_endpoint=args.edge, communication__cloud_endpoint=args.cloud)


def run_program(
    program: Coroutine[Any, Any, None], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> int:
    """Runs a program and returns its exit code; a FrameworkError becomes one line on stderr and code 1.

    The first Ctrl-C or SIGTERM cancels the program (code 130); further ones are ignored while it cleans up.
    """
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_cancelled_by_signals(program))
    except FrameworkError as error:
        print(f"error: {_named(error)}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        return 130
    return 0


def run_with_config(
    args: argparse.Namespace, program: Callable[[Config], Coroutine[Any, Any, None]], **flags: object
) -> int:
    """The same for a program that needs the config of this command line: what is wrong in it is one line, too."""

    async def configured() -> None:
        await program(load_config(args, **flags))

    return run_program(configured())


def _named(error: FrameworkError) -> str:
    """The message, with the field that is at fault where it does not say it."""
    param = error.param if isinstance(error, RequestError) else None
    return error.message if param is None or param in error.message else f"{param}: {error.message}"


def run_sync_program(program: Callable[[], None]) -> int:
    """The same for a program without an event loop; an OSError becomes one line, too."""
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
    """Logs go to stderr, also where a terminal would stop a program in the background for it (`stty tostop`)."""
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    handler = logging.StreamHandler()
    handler.setFormatter(TracedFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    handler.addFilter(ShortLines())
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("stamina").setLevel(logging.ERROR)  # only the failure after the last retry is of interest
