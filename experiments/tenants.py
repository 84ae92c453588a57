"""Can one tenant tell by the clock what another has asked? It times guesses; the area under the curve judges them.

    python -m experiments.tenants [--config FILE] [--set KEY=VALUE] [--guesses 1000]

For each guess the victim asks a long new prompt, and the attacker, with another API key, times the first token of
either the same prompt or another new one, by the toss of a coin. The area under the ROC curve is the probability that a
prompt of the victim's takes less time than another: 0.5 if the clock tells nothing. The same with the victim's own key
shows that it would: its prompts are in the caches. Asked are the cloud, the edge alone, and the cloud through the edge.
"""

import random
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress
from rich.table import Table

from cli import terminal
from cli.args import config_parser, count, run_program
from common.config_values import Secret
from common.http.client import HTTPClient
from experiments.harness import servers

VICTIM, ATTACKER, EDGE = "victim-key", "attacker-key", "edge-key"
SETTINGS = (
    f'edge.server.api_keys=["{VICTIM}", "{ATTACKER}"]',
    f'cloud.server.api_keys=["{VICTIM}", "{ATTACKER}", "{EDGE}"]',
    f"communication.cloud_api_key={EDGE}",
    "cloud.engine_args.block_size=32",
)
WORDS = (
    *("river", "stone", "cloud", "window", "garden", "letter", "music", "winter"),
    *("island", "paper", "silver", "bridge", "forest", "candle", "mirror", "thunder"),
)
PROMPT_WORDS = 90
"""Long enough that reading it takes many times as long as finding it."""


class Target(NamedTuple):
    """What is asked: a server, and fields of the request."""

    name: str
    server: str
    fields: dict[str, Any]


TARGETS = (
    Target("the cloud", "cloud", {}),
    Target("the edge alone", "edge", {"mode": "edge_only"}),
    Target("the cloud through the edge", "edge", {"mode": "cloud_only"}),
)


async def main() -> None:
    parser = config_parser("Can one tenant tell by the clock what another has asked?")
    parser.add_argument("--guesses", type=count, default=1000, help="of the attacker, for each target (default 1000)")
    parser.add_argument("--control", type=count, default=100, help="guesses with the victim's own key (default 100)")
    args = parser.parse_args()
    table = Table("asked", "key", "guesses", "area under the curve", title="Timing of prompts", title_justify="left")
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(servers.site(args, SETTINGS, False, terminal.console().print))
        urls = {"edge": site.urls[servers.AskedServer.EDGE], "cloud": site.cloud_url}
        clients = {
            (server, key): await stack.enter_async_context(HTTPClient(url, api_key=Secret(key)))
            for server, url in urls.items()
            for key in (VICTIM, ATTACKER)
        }
        with Progress() as progress:
            for target in TARGETS:
                for key, guesses in ((ATTACKER, args.guesses), (VICTIM, args.control)):
                    turns = progress.track(range(guesses), description=f"{target.name}, {key}")
                    hits, misses = await guess(
                        clients[target.server, VICTIM], clients[target.server, key], target, turns
                    )
                    table.add_row(target.name, key.replace("-", "'s "), str(guesses), interval(hits, misses))
    terminal.console().print(table)


async def guess(
    victim: HTTPClient, attacker: HTTPClient, target: Target, turns: Iterable[int]
) -> tuple[list[float], list[float]]:
    """Seconds of the attacker's first tokens: for prompts that the victim has asked, and for others."""
    chance, hits, misses = random.Random(0), list[float](), list[float]()
    for _ in turns:
        asked, other = prompt(chance), prompt(chance)
        await first_token(victim, target, asked)
        right = chance.random() < 0.5
        seconds = await first_token(attacker, target, asked if right else other)
        (hits if right else misses).append(seconds)
    return hits, misses


def prompt(chance: random.Random) -> str:
    return "<|user|>" + " ".join(chance.choices(WORDS, k=PROMPT_WORDS)) + "<|assistant|>"


async def first_token(client: HTTPClient, target: Target, asked: str) -> float:
    began = time.perf_counter()
    body = {"prompt": asked, "max_tokens": 1, "temperature": 0, **target.fields}
    await client.post("/v1/completions", body, dict)
    return time.perf_counter() - began


def area(hits: Sequence[float], misses: Sequence[float]) -> float:
    """The probability that a hit takes less time than a miss (Mann and Whitney 1947); equal times count half."""
    faster = np.subtract.outer(np.array(misses), np.array(hits))
    return float(np.mean((faster > 0) + 0.5 * (faster == 0)))


def interval(hits: Sequence[float], misses: Sequence[float]) -> str:
    """The area with twice its standard error where nothing can be told."""
    error = 2 * ((len(hits) + len(misses) + 1) / (12 * len(hits) * len(misses))) ** 0.5
    return f"{area(hits, misses):.3f} ± {error:.3f}"


if __name__ == "__main__":
    sys.exit(run_program(main()))
