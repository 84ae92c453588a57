"""What every program's command line shares: config flags, logging, errors in one line. Knows no program."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Coroutine
from typing import Any

from common import config
from common.config import Config
from common.errors import FrameworkError


def parser(description: str) -> argparse.ArgumentParser:
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


def run(program: Coroutine[Any, Any, int | None]) -> int:
    """Runs a program to its end; a FrameworkError becomes one line on stderr and exit code 1, Ctrl-C code 130."""
    try:
        return asyncio.run(program) or 0
    except FrameworkError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def set_up_logging(level: str) -> None:
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("stamina").setLevel(logging.ERROR)  # a retry is not news; the failure after the last one is
