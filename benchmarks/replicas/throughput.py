"""Compares the throughput of two replicas with that of one.

python -m benchmarks.replicas.throughput [--step-ms 60] [--clients 16] [--places 4] [--tokens 48] [--repeats 3]

Both clouds run all the time and are measured in turn. Each engine step sleeps for `--step-ms` beside its computing, so
that the cores of one small machine do not decide; 0: no sleep. An engine takes `--places` sequences a step. The ratio
is that of the output tokens per second.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from typing import Any

from rich.table import Table

from benchmarks.replicas.service import cloud_process, running
from benchmarks.replicas.sleeping_variable import VARIABLE
from cli import terminal
from cli.args import config_parser, count, run_program
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


async def compare(args: argparse.Namespace) -> None:
    os.environ[VARIABLE] = str(args.step_ms / 1000)
    settings = [f"cloud.draft_verifier.batch.max_batch_size={args.places}"]
    if args.step_ms:
        settings.append(f"cloud.engine_args.worker_cls={WORKER}")
    clouds = {number: cloud_process(args, number, *settings) for number in (1, 2)}
    speeds: dict[int, list[float]] = {number: [] for number in clouds}
    report = terminal.console().print
    async with running(list(clouds.values()), report):
        for repeat in range(args.repeats + 1):  # the first one warms up
            for number, cloud in clouds.items():
                report(f"repeat {repeat} of {args.repeats}: {number} replicas")
                speed = await tokens_per_second(cloud.url, args.clients, args.tokens, f"{repeat}")
                speeds[number] += [speed] if repeat else []
    table = Table("replicas", "tokens/s", "ratio", "least to greatest")
    one = statistics.median(speeds[1])
    for number, found in speeds.items():
        median = statistics.median(found)
        table.add_row(str(number), f"{median:.1f}", f"{median / one:.2f}", f"{min(found):.1f} to {max(found):.1f}")
    report(table)


def main() -> int:
    parser = config_parser("Compare the throughput of two replicas with that of one.")
    parser.add_argument("--step-ms", type=float, default=60, help="milliseconds that each step sleeps (default: 60)")
    parser.add_argument("--clients", type=count, default=16, help="requests at once (default: 16)")
    parser.add_argument("--places", type=count, default=4, help="sequences in a step of one engine (default: 4)")
    parser.add_argument("--tokens", type=count, default=48, help="tokens of an answer (default: 48)")
    parser.add_argument("--repeats", type=count, default=3, help="measurements of each (default: 3)")
    return run_program(compare(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
