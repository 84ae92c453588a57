"""Sends a file of requests to a running edge, many at once: edgecloud batch."""

import argparse
import asyncio
import time
from datetime import datetime
from functools import partial
from pathlib import Path

from msgspec.structs import replace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cli import terminal
from cli.args import config_parser, count, run_with_config
from common.batch.batch_input import BatchInput
from common.batch.batch_output import BatchOutput
from common.batch.http_target import HttpTarget
from common.batch.runner import BatchRunner
from common.config_schema import Config
from common.errors import FrameworkError
from common.http.client import HTTPClient

LONG_SECONDS = 60.0
"""A wait for the edge that is longer, as for the next day's budget, has a line of its own."""


def parser() -> argparse.ArgumentParser:
    options = config_parser("Send a file of requests to a running edge, many at once; the results keep their order.")
    options.add_argument(
        "input",
        type=Path,
        metavar="INPUT",
        help='JSON lines in OpenAI\'s batch form ({"custom_id": ..., "method": "POST", "url": ..., "body": ...}), or '
        "bodies of chat or text completions alone",
    )
    options.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        required=True,
        help="file for the results, as JSON lines in OpenAI's form",
    )
    options.add_argument("--edge", metavar="URL", help="the edge server (default: communication.edge_endpoint)")
    options.add_argument(
        "--clients", type=count, metavar="N", help="requests in flight at once (default: as many as keep the edge full)"
    )
    options.add_argument(
        "--resume",
        action="store_true",
        help="continue an output that exists: what is finished stays, what failed at a server is asked again",
    )
    return options


def run(args: argparse.Namespace) -> int:
    return run_with_config(args, partial(batch, args), communication__edge_endpoint=args.edge)


async def batch(args: argparse.Namespace, config: Config) -> None:
    """Raises FrameworkError at the end if lines have failed."""
    given = BatchInput(args.input)
    with BatchOutput(args.output, given, args.resume) as output:
        async with _client(config, args.clients or 0) as client:
            target = HttpTarget(client)
            await _run(given, output, target, args.clients or await target.capacity())
        output.order()
    if output.failed:
        raise FrameworkError(f"{output.failed} of {len(given)} lines failed: {args.output} says why")


async def _run(given: BatchInput, output: BatchOutput, target: HttpTarget, clients: int) -> None:
    """Runs what is left, and shows how far it is."""
    console, began, earlier, told = terminal.console(), time.monotonic(), output.finished, 0.0

    def rate() -> float:
        return (output.finished - earlier) / (time.monotonic() - began)

    with _progress(console) as bar:
        task = bar.add_task("", total=len(given), completed=earlier, note="")

        def show(waiting: int) -> None:
            nonlocal told
            if (full := runner.refusal) is not None and full.until > max(told, time.time()) + LONG_SECONDS:
                told = full.until
                console.print(f"the edge takes no lines until {datetime.fromtimestamp(told):%F %T}: {full.reason}")
            numbers = f"{rate():.1f}/s" + f", {output.failed} failed" * (output.failed > 0)
            bar.update(task, completed=output.finished, note=numbers + f", {waiting} wait for the edge" * (waiting > 0))

        runner = BatchRunner(given, output, target, show)
        try:
            await runner.run(clients)
        except asyncio.CancelledError:
            console.print(f"{output.finished} of {len(given)} lines are finished: continue with --resume")
            raise
    done, seconds = output.finished - earlier, time.monotonic() - began
    console.print(f"{done} lines in {seconds:.1f} s, {rate():.1f} a second, {clients} in flight: {output.path}")


def _client(config: Config, clients: int) -> HTTPClient:
    """Of the edge, with a connection for each request in flight and its questions whether the edge works on it."""
    settings, edge = config.communication.http_client, config.communication
    pool = max(settings.connection_pool_size, 2 * clients)
    return HTTPClient(edge.edge_endpoint, replace(settings, connection_pool_size=pool), edge.edge_api_key)


def _progress(console: Console) -> Progress:
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")
    times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    return Progress(*columns, *times, console=console, speed_estimate_period=600)
