"""Offers a pair many times what it can answer: how long do accepted answers take, how soon is a refusal there?

    python -m experiments.overload [--config FILE] [--set KEY=VALUE] [--server edge|cloud] [--seconds 60] [--times 10]

First it measures, closed loop, what `--nominal` clients get: their answers per second are the capacity. Then questions
arrive at random moments (Poisson), `--times` as many in a second, whether or not earlier ones are answered. A server
that admits what it can serve refuses the others at once (429), and its memory is what it was when all have left.
Clients give up nothing and do not ask again.

The server that is asked has all cores but the last. There are the clients, which cost a tenth of a millisecond a
request, and the cloud of an edge that is asked. How late the clients themselves were is reported, too.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import numpy as np
from rich.table import Table

from cli import terminal
from cli.args import config_parser, count, positive, run_program
from cli.demo import server_pair
from cli.supervisor import Supervisor
from experiments.counters.vitals import sample
from experiments.plain_requests import PlainClient, PlainReply

QUESTIONS = ("What is AI?", "Explain deep learning", "What is gravity?", "Explain quantum computing")
ANSWERED, REFUSED = 200, 429
NOMINAL = {"edge": 8, "cloud": 32}
"""Clients whose throughput is the capacity: an edge has four sequences by default, a cloud 32."""
SETTLE_SECONDS = 20.0
"""After the load, before memory is compared."""
WARM_SECONDS, NOMINAL_SECONDS = 5.0, 15.0
FLAGS = (
    ("--seconds", positive, 60.0, "of overload"),
    ("--times", positive, 10.0, "offered load over capacity"),
    ("--max-tokens", count, 32, "tokens of an answer"),
)


async def main() -> None:
    parser = config_parser("Offer a pair many times what it can answer.")
    for name, kind, default, meaning in FLAGS:
        parser.add_argument(name, type=kind, default=default, help=f"{meaning} (default {default})")
    parser.add_argument("--server", choices=tuple(NOMINAL), default="edge", help="that is asked (default edge)")
    parser.add_argument("--nominal", type=count, help="clients whose throughput is the capacity (default 8; cloud: 32)")
    args = parser.parse_args()
    args.nominal = args.nominal or NOMINAL[args.server]
    async with pinned_server(args) as url, PlainClient(url) as client:
        requests = [client.post("/v1/chat/completions", body(question, args.max_tokens)) for question in QUESTIONS]
        say = terminal.console().print
        say(f"{args.nominal} clients for {WARM_SECONDS + NOMINAL_SECONDS:.0f} s: the capacity")
        await client.in_turns(args.nominal, requests, WARM_SECONDS)
        nominal = await client.in_turns(args.nominal, requests, NOMINAL_SECONDS)
        before = memory()
        capacity = len(of_status(nominal, ANSWERED)) / NOMINAL_SECONDS
        say(f"{args.times:g} times {capacity:.1f} answers/s for {args.seconds:g} s, and {SETTLE_SECONDS:.0f} s of rest")
        overload = await client.at_rate(args.times * capacity, requests, args.seconds)
        await asyncio.sleep(SETTLE_SECONDS)
        say(table(args, capacity, nominal, overload, before, memory()))


@asynccontextmanager
async def pinned_server(args: argparse.Namespace) -> AsyncIterator[str]:
    """The URL of the server that is asked; it runs on all cores but the last, this process and its cloud on that."""
    cores = sorted(os.sched_getaffinity(0))
    cloud, edge = server_pair(args)
    async with AsyncExitStack() as stack:
        for server in [cloud] if args.server == "cloud" else [cloud, edge]:
            os.sched_setaffinity(0, cores[-1:] if server.name != args.server else cores[:-1] or cores)  # is inherited
            await stack.enter_async_context(Supervisor([server], terminal.console().print).running())
        os.sched_setaffinity(0, cores[-1:])
        yield server.url


def body(question: str, max_tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": max_tokens}


def of_status(replies: Sequence[PlainReply], status: int) -> list[float]:
    """The seconds of the replies with this status."""
    return [reply.seconds for reply in replies if reply.status == status]


def memory() -> dict[str, float]:
    """MiB of each server and of its processes."""
    return {one.place: one.memory for one in sample(0.0)}


def table(
    args: argparse.Namespace,
    capacity: float,
    nominal: Sequence[PlainReply],
    overload: Sequence[PlainReply],
    before: dict[str, float],
    after: dict[str, float],
) -> Table:
    written = Table("", "", title=f"{args.times:g} times the capacity of the {args.server}", title_justify="left")
    usual, accepted, refused = of_status(nominal, ANSWERED), of_status(overload, ANSWERED), of_status(overload, REFUSED)
    late = [reply.late for reply in overload if reply.status == REFUSED]
    rows = {
        f"capacity, {args.nominal} clients": f"{capacity:.1f} answers/s",
        "median, 95th percentile at capacity": quantiles(usual),
        "accepted": f"{len(accepted)}: {quantiles(accepted)}",
        "95th percentile over that at capacity": ratio(accepted, usual),
        "refused (429)": f"{len(refused)}: {quantiles(refused)}",
        "refused within 100 ms": share(refused, 0.1),
        "of these times, until they were sent": quantiles(late),
        "other outcomes": others(overload),
        **{
            f"memory, {place}": f"{before[place]:.0f} MiB, then {after[place] / before[place]:.2f} times"
            for place in before
        },
    }
    for name, value in rows.items():
        written.add_row(name, value)
    return written


def others(replies: Sequence[PlainReply]) -> str:
    """The statuses of replies that are neither an answer nor a refusal; 0: a broken connection."""
    return ", ".join(sorted({str(one.status) for one in replies} - {str(ANSWERED), str(REFUSED)})) or "none"


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
