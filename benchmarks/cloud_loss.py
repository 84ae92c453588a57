"""Measures what a lost cloud costs the edge's answers: during a stall, while it is down, and until it is used again.

python -m benchmarks.cloud_loss [--config FILE] [--set KEY=VALUE] [--requests 200] [--stalls 20] [--deadline 1.0]

The edge is a real one in its own process, with the model of the config. The cloud is a fake one without a model
(benchmarks/fake_cloud.py), behind a simulated network that stalls. While the cloud is down, each turn measures one
collaborative answer and one answer in mode edge_only, in alternating order; the difference is what the lost cloud
costs. All figures are milliseconds.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from rich.progress import Progress
from rich.table import Table

from benchmarks.fake_cloud import serving
from cli import terminal
from cli.args import config_parser, positive, run_program
from cli.demo import config_flags, free_ports
from cli.server_process import EDGE, ServerProcess
from cli.supervisor import Supervisor
from common.files.installation import logs
from common.http.client import HTTPClient
from experiments.harness.delay_proxy import DelayProxy

HOST = "127.0.0.1"
ASK: dict[str, Any] = {"prompt": "<|user|>Explain deep learning<|assistant|>", "max_tokens": 48, "temperature": 0}
COLLABORATIVE = ASK | {"use_confidence_check": False}


async def main() -> None:
    parser = config_parser("Measure what a lost cloud costs the edge's answers.")
    parser.add_argument("--requests", type=int, default=200, help="answers while the cloud is down (default 200)")
    parser.add_argument("--stalls", type=int, default=20, help="answers during which the cloud stalls (default 20)")
    parser.add_argument(
        "--deadline",
        type=positive,
        default=1.0,
        help="the edge's limit for the first byte and between two frames, in seconds (default 1)",
    )
    parser.add_argument(
        "--probe", type=positive, default=1.0, help="seconds between two probes of a lost cloud (default 1)"
    )
    args = parser.parse_args()
    table = Table(
        "", "median", "95th percentile", "maximum", title="What a lost cloud costs an answer", title_justify="left"
    )
    with Progress() as progress:
        late = await after_stalls(args, progress.track(range(args.stalls), description="stalls"))
        down, alone, back = await while_down(args, progress.track(range(args.requests), description="cloud down"))
    extra = [with_cloud_down - edge_only for with_cloud_down, edge_only in zip(down, alone, strict=True)]
    table.add_row(f"longest wait for a token in a stall, beyond the deadline of {args.deadline:g} s", *row(late))
    table.add_row(f"{args.requests} collaborative answers with the cloud down", *row(down))
    table.add_row(f"{args.requests} answers in mode edge_only, in turn with these", *row(alone))
    table.add_row("difference within each turn", *row(extra))
    table.add_row(
        f"from the cloud's return to the first answer with it (probe interval {args.probe:g} s)", *row([back])
    )
    terminal.console().print(table)


def row(milliseconds: list[float]) -> tuple[str, str, str]:
    ordered = sorted(milliseconds)
    shown = statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))], ordered[-1]
    return tuple(f"{value:.0f} ms" for value in shown)  # type: ignore[return-value]


@asynccontextmanager
async def edge_of(cloud_url: str, args: argparse.Namespace) -> AsyncIterator[HTTPClient]:
    """A client of a new edge server that uses this cloud."""
    (port,) = free_ports(1)
    settings = [
        f"communication.cloud_endpoint={cloud_url}",
        f"communication.http_client.first_byte_timeout={args.deadline}",
        f"communication.http_client.idle_timeout={args.deadline}",
        f"communication.breaker.probe_seconds={args.probe}",
    ]
    flags = [*config_flags(args), "--host", HOST, "--port", str(port)]
    flags += [word for one in settings for word in ("--set", one)]
    url = f"http://{HOST}:{port}"
    server = ServerProcess("edge", EDGE, url, flags, logs() / "cloud-loss.log")
    async with Supervisor([server], lambda _: None).running(), HTTPClient(url) as client:
        yield client


async def after_stalls(args: argparse.Namespace, turns: Iterable[int]) -> list[float]:
    """For each answer the longest wait for a token minus the deadline, in milliseconds."""
    late = list[float]()
    chance = random.Random(1)
    async with serving() as cloud:
        cloud.pause = 0.01
        async with DelayProxy(HOST, int(cloud.url.rpartition(":")[2])) as proxy, edge_of(proxy.url, args) as edge:
            await cloud.share_vocabulary(edge)
            for _ in turns:
                longest = 0.0
                while longest < 0.9 * args.deadline:  # else the answer had ended, or the circuit breaker was still open
                    longest = await longest_wait(edge, proxy, chance.randint(1, 8))
                late.append((longest - args.deadline) * 1000)
    return late


async def longest_wait(edge: HTTPClient, proxy: DelayProxy, stall_after: int) -> float:
    """The longest wait for a token of one answer, in seconds; the network stalls after `stall_after` events."""
    seen, last, longest = 0, time.perf_counter(), 0.0
    async for _ in edge.events("/v1/completions", COLLABORATIVE | {"stream": True, "max_draft_tokens": 2}):
        now = time.perf_counter()
        longest, last, seen = max(longest, now - last), now, seen + 1
        if seen == stall_after:
            proxy.stall()
    proxy.flow()
    return longest


async def while_down(args: argparse.Namespace, turns: Iterable[int]) -> tuple[list[float], list[float], float]:
    """Milliseconds of collaborative and of edge_only answers with the cloud down, and until the cloud is used again."""
    (port,) = free_ports(1)
    async with edge_of(f"http://{HOST}:{port}", args) as edge:
        while not await breakers_open(edge):
            await timed(edge, COLLABORATIVE)
        down, alone = list[float](), list[float]()
        requests = [(COLLABORATIVE, down), (ASK | {"mode": "edge_only"}, alone)]
        for turn in turns:
            for body, spent in requests if turn % 2 else reversed(requests):
                milliseconds, report = await timed(edge, body)
                assert (report["degraded"] is not None) == (body is COLLABORATIVE)
                spent.append(milliseconds)
        async with serving(port) as cloud:
            await cloud.share_vocabulary(edge)
            began = time.perf_counter()
            while not (await timed(edge, COLLABORATIVE))[1]["lossless"]:
                pass
            return down, alone, (time.perf_counter() - began) * 1000


async def timed(edge: HTTPClient, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Milliseconds of a whole answer, and its collaboration report."""
    began = time.perf_counter()
    answer: dict[str, Any] = await edge.post("/v1/completions", body, dict)
    milliseconds = (time.perf_counter() - began) * 1000
    assert answer["choices"][0]["finish_reason"]
    return milliseconds, answer["collaboration"]


async def breakers_open(edge: HTTPClient) -> bool:
    """Whether the edge has stopped asking all of its clouds."""
    stats: dict[str, Any] = await edge.get("/stats", dict)
    return all(one["breaker"]["state"] != "closed" for one in stats["clouds"]["endpoints"].values())


if __name__ == "__main__":
    sys.exit(run_program(main()))
