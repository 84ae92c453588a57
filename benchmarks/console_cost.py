"""Measures what open pages of the console cost: processor time of an idle edge, and tokens a second of a busy one.

python -m benchmarks.console_cost [--config FILE] [--set KEY=VALUE] [--pages 20] [--blocks 12] [--seconds 10]

The edge is a real one in its own process, with the model of the config; its cloud is a fake one without a model
(benchmarks/fake_cloud.py), because answers that the edge computes alone show most of what pages cost it. A page here is
the requests that the live view of a browser makes, as often as it makes them (the other views ask nothing by
themselves); pages open one after the other within the time between two looks. Blocks with and without pages follow each
other, in alternating order. The processor time is that of the process of the edge, which other programs hardly
change; the speeds include what the pages' requests cost in this program, on the same cores.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import numpy as np
import psutil
from rich.progress import Progress
from rich.table import Table

from benchmarks.fake_cloud import serving
from cli import terminal
from cli.args import config_parser, count, run_program
from cli.demo import config_flags, free_ports
from cli.server_process import ServerProcess
from cli.supervisor import Supervisor
from common.files.installation import PROJECT
from common.http.client import HTTPClient
from experiments.harness import statistics

SECONDS = 5.0
"""Between two looks of a page, as in edge/console/static/js/live.js."""
NAMES = (
    "answer_tokens_total",
    "drafted_tokens_total",
    "accepted_tokens_total",
    "answers_total",
    "answers_by_way_total",
    "rounds_total",
    "time_to_first_byte_seconds_sum",
    "time_to_first_byte_seconds_count",
)
LOOK = ("/stats", "/metrics?" + "&".join(f"name[]=edgecloud_{name}" for name in NAMES))
"""What a page asks for at each look."""
ASK: dict[str, Any] = {
    "prompt": "<|user|>Explain deep learning<|assistant|>",
    "max_tokens": 64,
    "temperature": 0,
    "mode": "edge_only",
}


class CostBlock(NamedTuple):
    """What one stretch of time took: seconds, processor seconds of the edge, tokens of answers."""

    seconds: float
    processor: float
    tokens: int


Work = Callable[[float], Awaitable[int]]
Pairs = Sequence[tuple[CostBlock, CostBlock]]
"""With pages and without, each time."""


async def main() -> None:
    parser = config_parser("Measure what open pages of the console cost the edge.")
    parser.add_argument("--pages", type=count, default=20, help="open pages (default 20)")
    parser.add_argument("--blocks", type=count, default=12, help="blocks with pages, and without (default 12)")
    parser.add_argument("--seconds", type=count, default=10, help="length of a block (default 10)")
    args = parser.parse_args()
    table = Table(title=f"What {args.pages} open pages cost", title_justify="left")
    for head in ("of", "median or ratio", "95 % interval"):
        table.add_column(head)
    with Progress() as progress:
        async with running_edge(args) as url, HTTPClient(url) as edge:
            for work, row in ((idle, cores), (answering(edge), speed)):
                turns = progress.track(range(args.blocks), description="idle" if work is idle else "answering")
                pairs = [await pair(url, work, args, turn % 2 == 0) for turn in turns]
                table.add_row(*row(pairs, args.pages))
    terminal.console().print(table)


@asynccontextmanager
async def running_edge(args: argparse.Namespace) -> AsyncIterator[str]:
    """The URL of a new edge server that uses a fake cloud."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    async with serving() as cloud:
        flags = [*config_flags(args), "--host", "127.0.0.1", "--port", str(port)]
        point = ["--set", f"communication.cloud_endpoint={cloud.url}"]
        log = PROJECT / "logs" / "console-cost.log"
        server = ServerProcess("edge", "start_edge.py", url, [*flags, *point], log)
        async with Supervisor([server], lambda _: None).running(), HTTPClient(url) as client:
            await cloud.share_vocabulary(client)
            yield url


async def pair(url: str, work: Work, args: argparse.Namespace, pages_first: bool) -> tuple[CostBlock, CostBlock]:
    """A block with pages and one without, which are neighbours."""
    made = dict[bool, CostBlock]()
    for with_pages in (pages_first, not pages_first):
        async with open_pages(url, args.pages if with_pages else 0):
            made[with_pages] = await block(work, args.seconds)
    return made[True], made[False]


async def block(work: Work, seconds: float) -> CostBlock:
    edge = edge_process()
    began, before = time.perf_counter(), edge.cpu_times()
    tokens = await work(seconds)
    spent, after = time.perf_counter() - began, edge.cpu_times()
    return CostBlock(spent, after.user + after.system - before.user - before.system, tokens)


def edge_process() -> psutil.Process:
    """The edge server that this program has started."""
    (found,) = [child for child in psutil.Process().children() if "start_edge.py" in " ".join(child.cmdline())]
    return found


async def idle(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return 0


def answering(edge: HTTPClient) -> Work:
    """One answer after the other; their tokens."""

    async def work(seconds: float) -> int:
        tokens, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            answer = await edge.post("/v1/completions", ASK, dict[str, Any])
            tokens += answer["usage"]["completion_tokens"]
        return tokens

    return work


@asynccontextmanager
async def open_pages(url: str, pages: int) -> AsyncIterator[None]:
    """So many open live views."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(page(url, SECONDS * number / pages)) for number in range(pages)]
        yield
        for task in tasks:
            task.cancel()


async def page(url: str, delay: float) -> None:
    await asyncio.sleep(delay)
    async with aiohttp.ClientSession(url, headers={"Accept-Encoding": "gzip"}) as session:
        while True:
            await asyncio.gather(*(look(session, path) for path in LOOK))
            await asyncio.sleep(SECONDS)


async def look(session: aiohttp.ClientSession, path: str) -> None:
    async with session.get(path) as response:
        response.raise_for_status()
        await response.read()


def cores(pairs: Pairs, pages: int) -> tuple[str, str, str]:
    """The share of one core that a page takes of an idle edge: what the edge takes without pages is taken off."""
    shares = [(shown.processor / shown.seconds - bare.processor / bare.seconds) / pages for shown, bare in pairs]
    drawn = statistics.quantiles(statistics.draws(len(shares)), np.array(shares)[:, None], 0.5)
    low, high = statistics.interval(drawn)
    return "share of a core that one page takes of an idle edge", f"{np.median(shares):.3%}", f"{low:.3%} to {high:.3%}"


def speed(pairs: Pairs, pages: int) -> tuple[str, str, str]:
    rows = [statistics.Pair(shown.tokens, shown.seconds, bare.tokens, bare.seconds) for shown, bare in pairs]
    found = statistics.speed_ratio(rows)
    name = f"tokens a second with {pages} pages, over those without"
    return name, f"{found.value:.3f}", f"{found.low:.3f} to {found.high:.3f}"


if __name__ == "__main__":
    sys.exit(run_program(main()))
