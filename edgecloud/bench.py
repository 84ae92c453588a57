"""Runs a benchmark: edgecloud bench NAME, or python -m benchmarks.NAME."""

import argparse
import runpy
import sys

from cli.args import plain_parser

NAMES = (
    "lossless_speed",
    *("continuous_speed", "serve_throughput", "uplink", "verify_cost"),
    *("cloud_loss", "edge_cache"),
)
"""All but those that need a checkout; the first is the default."""


def parser() -> argparse.ArgumentParser:
    options = plain_parser("Run a benchmark, which starts its own servers; its own flags follow: bench uplink --help.")
    options.add_argument("name", nargs="?", choices=NAMES, default=NAMES[0], help=f"(default: {NAMES[0]})")
    options.add_argument("flags", nargs=argparse.REMAINDER, help="flags of the benchmark")
    return options


def run(args: argparse.Namespace) -> int:
    module = f"benchmarks.{args.name}"
    sys.argv = [module, *args.flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)  # ends with SystemExit
    return 0
