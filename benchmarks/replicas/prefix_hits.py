"""Compares how much of prompts two replicas find in their KV caches: routed by the front, and at random.

python -m benchmarks.replicas.prefix_hits [--conversations 24] [--turns 5] [--repeats 3]

Conversations take turns in an order drawn anew for each repeat; each prompt repeats the one before it and adds a block
or two. In each repeat one half goes to the front, which chooses, and the other, of other tenants, to replicas drawn at
random. The table shows the tokens found of those looked up.
"""

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Callable

from rich.table import Table

from benchmarks.replicas.service import cloud_process, replicas_of, running
from cli import terminal
from cli.args import config_parser, count, run_program
from common.http.client import HTTPClient
from common.types import VerifyRequest, VerifyResponse

BLOCKS = 2
"""Blocks of 32 tokens by which a conversation grows with each turn."""


def order(conversations: int, turns: int, chance: random.Random) -> list[int]:
    """Which conversation has the next turn: each `turns` times."""
    found = [number for number in range(conversations) for _ in range(turns)]
    chance.shuffle(found)
    return found


async def hits(front: HTTPClient, asked: list[int], routing: str, repeat: int) -> float:
    """The share of tokens that are found while the conversations of `asked` take their turns."""
    before, chance = await counted(front), random.Random(repeat)
    urls = sorted(one["url"] for one in (await replicas_of(front)).values())
    clients = {url: HTTPClient(url) for url in urls}
    turns: defaultdict[int, int] = defaultdict(int)
    for number in asked:
        turns[number] += 1
        ids = random.Random(number).choices(range(10, 2000), k=32 * BLOCKS * turns[number] + 1)
        client = front if routing == "front" else clients[chance.choice(urls)]
        round = VerifyRequest(new_token_ids=ids, tenant=f"{routing}{repeat}")
        await client.post("/verify", round, VerifyResponse)
    for client in clients.values():
        await client.close()
    after = await counted(front)
    return (after[0] - before[0]) / (after[1] - before[1])


async def counted(front: HTTPClient) -> tuple[float, float]:
    """Tokens found and looked up by all replicas so far."""
    found = (await replicas_of(front)).values()
    return sum(one["prefix_cache_hits"] for one in found), sum(one["prefix_cache_queries"] for one in found)


async def compare(front: HTTPClient, args: argparse.Namespace, report: Callable[[str], None]) -> Table:
    """The table of both routings, measured in turn."""
    shares: dict[str, list[float]] = {"front": [], "random": []}
    for repeat in range(args.repeats):
        asked = order(args.conversations, args.turns, random.Random(repeat))
        for routing, found in shares.items():
            found.append(await hits(front, asked, routing, repeat))
            report(f"repeat {repeat + 1} of {args.repeats}: {found[-1]:.3f} of the tokens found, {routing}")
    table = Table("routing", "tokens found", "least to greatest")
    for routing, found in shares.items():
        table.add_row(routing, f"{sum(found) / len(found):.3f}", f"{min(found):.3f} to {max(found):.3f}")
    return table


async def measure(args: argparse.Namespace) -> None:
    cloud, report = cloud_process(args, 2), terminal.console().print
    async with running([cloud], report), HTTPClient(cloud.url) as front:
        table = await compare(front, args, report)
    report(table)


def parser() -> argparse.ArgumentParser:
    options = config_parser("Compare prefix hits of routing by KV events with random routing.")
    options.add_argument("--conversations", type=count, default=24, help="conversations of a repeat (default: 24)")
    options.add_argument("--turns", type=count, default=5, help="turns of each (default: 5)")
    options.add_argument("--repeats", type=count, default=3, help="repeats (default: 3)")
    return options


if __name__ == "__main__":
    sys.exit(run_program(measure(parser().parse_args())))
