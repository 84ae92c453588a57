"""Checks an installation part by part, F1 to F4, with the models of the config: edgecloud doctor, or test_framework.py.

Starts the servers on free ports and stops them again. The exit code is 0 if all checks pass, else 1.
"""

import argparse
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli.args import config_parser, load_config, run_program
from cli.demo import demo_servers
from common.errors import FrameworkError
from common.files.installation import CHECKOUT, install_hint
from common.http_client import EdgeCloudHTTPClient
from edgecloud.checks import CLOUD, EDGE, FIRST, LOGS, Unexpected, has_cloud


@dataclass
class CheckTable:
    """The table that grows while the checks run."""

    rows: list[tuple[Text, str, str, Text, str]] = field(default_factory=list)
    failed: int = 0
    running: tuple[str, str, float] | None = None
    """Part and name of the running check, and when it began."""

    async def run(self, part: str, what: str, check: Callable[[], Awaitable[str]], advice: str) -> bool:
        """Runs one check and adds its row, with `advice` if it fails; returns whether it passed."""
        started = time.perf_counter()
        self.running = part, what, started
        try:
            mark, seen = Text("✓", "green"), Text(await check())
        except FrameworkError as error:
            self.failed += 1
            mark, seen = Text("✗", "red"), Text(error.message, "red") + Text(f"\n→ {advice}")
        self.running = None
        self.rows.append((mark, part, what, seen, f"{time.perf_counter() - started:.1f} s"))
        return mark.plain == "✓"

    def __rich__(self) -> Table:
        table = Table("", "part", "check", "result", "time")
        for row in self.rows:
            table.add_row(*row)
        if self.running:
            part, what, started = self.running
            table.add_row("…", part, what, "", f"{time.perf_counter() - started:.0f} s")
        return table


def parser() -> argparse.ArgumentParser:
    return config_parser("Check this installation: start the servers, try each part, stop them.")


def run(args: argparse.Namespace) -> int:
    return run_program(check(args))


async def check(args: argparse.Namespace) -> None:
    """Raises Unexpected at the end if a check failed."""
    config = load_config(args)  # a wrong key is reported before anything starts
    console, report = Console(highlight=False), CheckTable()
    console.print(f"edge {config.edge.model.path}, cloud {config.cloud.model.path}")
    with Live(console=console, get_renderable=report.__rich__, refresh_per_second=2):
        await run_all(report, args)
    console.print()
    if report.failed:
        raise Unexpected(f"{report.failed} of {len(report.rows)} checks failed")
    if has_cloud():
        start = "python main.py --mode server" if CHECKOUT else "edgecloud serve"
        console.print(f"All {len(report.rows)} checks passed: {start}", style="green")
    else:
        console.print(f"All {len(report.rows)} checks of an edge passed: edgecloud edge", style="green")
        console.print(
            f"{len(CLOUD)} more need a cloud, and vLLM is not installed: {install_hint('cloud')}", markup=False
        )


async def run_all(report: CheckTable, args: argparse.Namespace) -> None:
    """The checks that need no server, then, if these pass, the others; without vLLM only those of an edge."""
    for part, what, check, advice in FIRST:
        await report.run(part, what, check, advice)
    if report.failed:
        return
    both = has_cloud()
    async with AsyncExitStack() as running:
        started: list[EdgeCloudHTTPClient] = []

        async def start() -> str:
            edge, cloud = await running.enter_async_context(demo_servers(args, lambda _: None, with_cloud=both))
            here = load_config(args, communication__edge_endpoint=edge, communication__cloud_endpoint=cloud)
            started.append(await running.enter_async_context(EdgeCloudHTTPClient.of(here)))
            return f"{edge}, {cloud}" if both else edge

        if await report.run("set-up", "both servers start" if both else "the edge starts", start, LOGS):
            for part, what, ask_servers, advice in [*EDGE, *(CLOUD if both else [])]:
                await report.run(part, what, partial(ask_servers, started[0]), advice)
