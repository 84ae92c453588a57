"""Offers a pair many times what it can answer: how long do accepted answers take, how soon is a refusal there?

    python -m experiments.overload [--config FILE] [--set KEY=VALUE] [--seconds 60] [--times 10] [--nominal 8]

First it measures, closed loop, what `--nominal` clients get: their answers per second are the capacity. Then questions
arrive at random moments (Poisson), `--times` as many in a second, whether or not earlier ones are answered. A server
that admits what it can serve refuses the others at once (429), and its memory is what it was when all have left.
Clients give up nothing and do not ask again.
"""

import argparse
import asyncio
import random
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
from rich.table import Table

from cli import terminal
from cli.args import config_parser, count, run_program
from experiments.counters.vitals import sample
from experiments.harness import servers

QUESTIONS = ("What is AI?", "Explain deep learning", "What is gravity?", "Explain quantum computing")
REFUSED = 429
SETTLE_SECONDS = 20.0
"""After the load, before memory is compared."""
FLAGS = (
    ("--seconds", float, 60.0, "of overload"),
    ("--times", float, 10.0, "offered load over capacity"),
    ("--nominal", count, 8, "clients whose throughput is the capacity"),
    ("--max-tokens", count, 32, "tokens of an answer"),
)


@dataclass
class Outcomes:
    """Seconds of answers and of refusals, and what else came."""

    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    other: list[str] = field(default_factory=list)


async def main() -> None:
    parser = config_parser("Offer a pair many times what it can answer.")
    for name, kind, default, meaning in FLAGS:
        parser.add_argument(name, type=kind, default=default, help=f"{meaning} (default {default})")
    parser.add_argument("--server", choices=("edge", "cloud"), default="edge", help="that is asked (default edge)")
    args = parser.parse_args()
    async with servers.site(args, (), False, terminal.console().print) as site:
        urls = {"edge": site.urls[servers.AskedServer.EDGE], "cloud": site.cloud_url}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(urls[args.server], connector=connector) as http:
            await closed_loop(http, args, 5.0)  # warm
            nominal = await closed_loop(http, args, 15.0)
            before = memory()
            capacity = len(nominal.accepted) / 15.0
            overload = await open_loop(http, args, args.times * capacity)
            await asyncio.sleep(SETTLE_SECONDS)
            terminal.console().print(table(args, capacity, nominal, overload, before, memory()))


async def ask(http: aiohttp.ClientSession, outcomes: Outcomes, chance: random.Random, max_tokens: int) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": chance.choice(QUESTIONS)}], "temperature": 0}
    began = time.perf_counter()
    try:
        async with http.post("/v1/chat/completions", json=body | {"max_tokens": max_tokens}) as reply:
            await reply.read()
    except aiohttp.ClientError as error:
        outcomes.other.append(type(error).__name__)
        return
    seconds = time.perf_counter() - began
    if reply.status == REFUSED:
        outcomes.refused.append(seconds)
    elif reply.status == 200:
        outcomes.accepted.append(seconds)
    else:
        outcomes.other.append(str(reply.status))


async def closed_loop(http: aiohttp.ClientSession, args: argparse.Namespace, seconds: float) -> Outcomes:
    outcomes, end = Outcomes(), time.monotonic() + seconds

    async def client(chance: random.Random) -> None:
        while time.monotonic() < end:
            await ask(http, outcomes, chance, args.max_tokens)

    await asyncio.gather(*(client(random.Random(number)) for number in range(args.nominal)))
    return outcomes


async def open_loop(http: aiohttp.ClientSession, args: argparse.Namespace, rate: float) -> Outcomes:
    outcomes, chance, end = Outcomes(), random.Random(0), time.monotonic() + args.seconds
    async with asyncio.TaskGroup() as group:
        while time.monotonic() < end:
            await asyncio.sleep(chance.expovariate(rate))
            group.create_task(ask(http, outcomes, random.Random(chance.random()), args.max_tokens))
    return outcomes


def memory() -> dict[str, float]:
    """MiB of each server and of its processes."""
    return {one.place: one.memory for one in sample(0.0)}


def table(
    args: argparse.Namespace,
    capacity: float,
    nominal: Outcomes,
    overload: Outcomes,
    before: dict[str, float],
    after: dict[str, float],
) -> Table:
    written = Table("", "", title=f"{args.times:g} times the capacity of the {args.server}", title_justify="left")
    rows = {
        f"capacity, {args.nominal} clients": f"{capacity:.1f} answers/s",
        "median, 95th percentile at capacity": quantiles(nominal.accepted),
        "accepted": f"{len(overload.accepted)}: {quantiles(overload.accepted)}",
        "95th percentile over that at capacity": ratio(overload.accepted, nominal.accepted),
        "refused (429)": f"{len(overload.refused)}: {quantiles(overload.refused)}",
        "refused within 100 ms": share(overload.refused, 0.1),
        "other outcomes": ", ".join(sorted(set(overload.other))) or "none",
        **{
            f"memory, {place}": f"{before[place]:.0f} MiB, then {after[place] / before[place]:.2f} times"
            for place in before
        },
    }
    for name, value in rows.items():
        written.add_row(name, value)
    return written


def quantiles(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    return ", ".join(f"{np.quantile(seconds, q):.3f} s" for q in (0.5, 0.95))


def ratio(overload: list[float], nominal: list[float]) -> str:
    return f"{np.quantile(overload, 0.95) / np.quantile(nominal, 0.95):.2f}" if overload and nominal else "none"


def share(seconds: list[float], limit: float) -> str:
    return f"{np.mean(np.array(seconds) <= limit):.3f}, the latest {max(seconds):.3f} s" if seconds else "none"


if __name__ == "__main__":
    sys.exit(run_program(main()))
