"""Compares the throughput of two replicas with that of one.

python -m benchmarks.replicas.throughput [--step-ms 30] [--clients 16] [--places 4] [--tokens 48] [--repeats 3]

The same clients ask in turn the front of two replicas, and one of the replicas directly. Each engine step sleeps for
`--step-ms` beside its computing, so that the cores of one small machine do not decide; 0: no sleep. An engine takes
`--places` sequences a step. The ratio is that of the output tokens per second.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.table import Table

from benchmarks.replicas.service import cloud_process, replicas_of, running
from benchmarks.replicas.sleeping_variable import VARIABLE
from cli import terminal
from cli.args import amount, config_parser, count, run_program
from common.config_schema import HttpClientConfig
from common.http.client import HTTPClient

WORKER = "benchmarks.replicas.sleeping_worker.SleepingWorker"


async def tokens_per_second(url: str, clients: int, tokens: int, salt: str) -> float:
    """Of `clients` completions at once, each of `tokens` tokens."""
    async with HTTPClient(url, HttpClientConfig(timeout=300)) as client:

        async def ask(number: int) -> None:
            prompt = [5 + number, *range(20, 40)]
            body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "cache_salt": salt}
            reply: dict[str, Any] = await client.post("/v1/completions", body, dict)
            assert reply["usage"]["completion_tokens"] == tokens

        began = time.perf_counter()
        await asyncio.gather(*map(ask, range(clients)))
        return clients * tokens / (time.perf_counter() - began)


async def compare(front: HTTPClient, args: argparse.Namespace, report: Callable[[str], None]) -> Table:
    """The table of both, measured in turn."""
    one = min(one["url"] for one in (await replicas_of(front)).values())
    speeds: dict[str, list[float]] = {one: [], front.base_url: []}
    for repeat in range(args.repeats + 1):  # the first one warms up
        for url, found in speeds.items():
            speed = await tokens_per_second(url, args.clients, args.tokens, str(repeat))
            found += [speed] if repeat else []
            report(f"repeat {repeat} of {args.repeats}: {speed:.1f} tokens/s of {url}")
    table = Table("replicas", "tokens/s", "ratio", "least to greatest")
    for number, found in enumerate(speeds.values(), 1):
        median = statistics.median(found)
        ratio = median / statistics.median(speeds[one])
        table.add_row(str(number), f"{median:.1f}", f"{ratio:.2f}", f"{min(found):.1f} to {max(found):.1f}")
    return table


def sleeping(step_ms: float, places: int) -> list[str]:
    """The settings of engines whose steps sleep; this process's environment tells them how long."""
    os.environ[VARIABLE] = str(step_ms / 1000)
    batch = f"cloud.draft_verifier.batch.max_batch_size={places}"
    return [batch, f"cloud.engine_args.worker_cls={WORKER}"] if step_ms else [batch]


async def measure(args: argparse.Namespace) -> None:
    cloud, report = cloud_process(args, 2, *sleeping(args.step_ms, args.places)), terminal.console().print
    async with running([cloud], report), HTTPClient(cloud.url) as front:
        table = await compare(front, args, report)
    report(table)


def parser() -> argparse.ArgumentParser:
    options = config_parser("Compare the throughput of two replicas with that of one.")
    options.add_argument("--step-ms", type=amount, default=30, help="milliseconds that each step sleeps (default: 30)")
    options.add_argument("--clients", type=count, default=16, help="requests at once (default: 16)")
    options.add_argument("--places", type=count, default=4, help="sequences in a step of one engine (default: 4)")
    options.add_argument("--tokens", type=count, default=48, help="tokens of an answer (default: 48)")
    options.add_argument("--repeats", type=count, default=3, help="measurements of each (default: 3)")
    return options


if __name__ == "__main__":
    sys.exit(run_program(measure(parser().parse_args())))
