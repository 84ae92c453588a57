"""Kills replicas under load: is every lossless answer the cloud's own, none lost, doubled or left to the edge?

python -m benchmarks.replicas.kills [--kills 20] [--clients 8] [--output logs/replica-kills.jsonl] [--minutes 5]

Clients ask a real edge, whose only cloud is two replicas on Ray, one question after another: in rounds, as a stream
and from the cloud alone. Each time that both replicas are ready and at work, one of them gets SIGKILL, in turn. The
table is over all kills in the file, to which a run adds its own; a run ends after its kills or its minutes.
"""

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from benchmarks.replicas.service import cloud_process, edge_process, replicas_of, running, until_all_ready
from cli import terminal
from cli.args import config_parser, count, positive, run_program
from common.config_schema import HttpClientConfig
from common.errors import EndpointError, RequestError
from common.files import jsonl
from common.http.client import HTTPClient

QUESTIONS = tuple(
    f"<|user|>{text}<|assistant|>"
    for text in ("What is AI?", "Explain deep learning", "Explain quantum computing", "What is machine learning?")
)
WAYS: tuple[dict[str, Any], ...] = (
    {"use_confidence_check": False, "way": "rounds"},
    {"use_confidence_check": False, "way": "continuous"},
    {"mode": "cloud_only"},
)
TOKENS = 48
BETWEEN = 10
"""Answers that must have come since one kill before the next."""


class ReplicaKill(msgspec.Struct, frozen=True):
    """What clients saw from one kill to the next: `wrong` answers were not the cloud's own."""

    replica: str
    in_flight: int
    """Requests that the killed replica worked on."""
    seconds: float
    """From the kill until both replicas were ready again."""
    answered: int
    degraded: int
    failed: int
    wrong: int


class AskingClients:
    """`count` clients of an edge, in tasks of their own until `stop`; `seen` counts their answers."""

    def __init__(self, edge: HTTPClient, truth: dict[str, list[int]], count: int) -> None:
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._edge = edge
        self._truth = truth
        self._tasks = [asyncio.create_task(self._ask_on(random.Random(number))) for number in range(count)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask_on(self, chance: random.Random) -> None:
        while True:
            question, way = chance.choice(QUESTIONS), chance.choice(WAYS)
            try:
                self.seen[await self._ask(question, way)] += 1
            except (EndpointError, RequestError) as error:
                self.seen["failed"] += 1
                self.wrong.append(f"{way}: {error.message}")

    async def _ask(self, question: str, way: dict[str, Any]) -> str:
        body = {"prompt": question, "max_tokens": TOKENS, "temperature": 0, "collaboration": {"tokens": True}, **way}
        reply: dict[str, Any] = await self._edge.post("/v1/completions", body, dict)
        report = reply["collaboration"]
        if report["degraded"]:
            self.wrong.append(f"{way}: {report['degraded']}")
            return "degraded"
        ids = [token["token_id"] for token in reply["choices"][0]["collaboration"]["tokens"]]
        if ids == self._truth[question]:
            return "answered"
        self.wrong.append(f"{way}: {ids} and not {self._truth[question]}")
        return "wrong"


async def truth_of(cloud: HTTPClient) -> dict[str, list[int]]:
    """The cloud's own greedy answer to each question."""
    truth = {}
    for question in QUESTIONS:
        asked = {"prompt": question, "max_tokens": TOKENS, "temperature": 0, "return_token_ids": True}
        reply: dict[str, Any] = await cloud.post("/v1/completions", asked, dict)
        truth[question] = reply["choices"][0]["token_ids"]
    return truth


async def until_asks_cloud(edge: HTTPClient) -> None:
    """Returns when the edge has compared its vocabulary with the cloud's: before that it answers alone."""
    body = {"prompt": QUESTIONS[0], "max_tokens": 4, "temperature": 0, "mode": "cloud_only"}
    while True:
        reply: dict[str, Any] = await edge.post("/v1/completions", body, dict)
        if not reply["collaboration"]["degraded"]:
            return
        await asyncio.sleep(0.5)


async def kill_one(cloud: HTTPClient, clients: AskingClients, name: str) -> ReplicaKill:
    """Kills this replica while it works, waits until it is ready again, and for some more answers."""
    before, at_once = clients.seen.copy(), 0
    while not at_once:
        replica = (await replicas_of(cloud))[name]
        at_once = replica["in_flight"]
    os.kill(replica["pid"], signal.SIGKILL)
    began = time.monotonic()
    while (await replicas_of(cloud))[name]["losses"] == replica["losses"]:
        await asyncio.sleep(0.05)
    await until_all_ready(cloud)
    seconds = time.monotonic() - began
    enough = clients.seen.total() + BETWEEN
    while clients.seen.total() < enough:
        await asyncio.sleep(0.05)
    counts = clients.seen - before
    seen = (counts[outcome] for outcome in ("answered", "degraded", "failed", "wrong"))
    return ReplicaKill(name, at_once, round(seconds, 1), *seen)


async def kill_all(
    front: HTTPClient, edge: HTTPClient, args: argparse.Namespace, report: Callable[[object], None]
) -> None:
    """All kills of this run, with clients that ask meanwhile."""
    truth = await truth_of(front)
    await until_asks_cloud(edge)
    clients = AskingClients(edge, truth, args.clients)
    deadline = time.monotonic() + 60 * args.minutes
    try:
        for number in range(args.kills):
            kill = await kill_one(front, clients, str(number % 2))
            _append(args.output, kill)
            report(f"{number + 1} of {args.kills}: {kill}")
            if time.monotonic() > deadline:
                break
    finally:
        await clients.stop()
        for line in clients.wrong:
            report(line)


async def measure(args: argparse.Namespace) -> None:
    cloud, report = cloud_process(args, 2), terminal.console().print
    edge = edge_process(args, cloud)
    patient = HttpClientConfig(timeout=200)
    async with running([cloud, edge], report), HTTPClient(cloud.url) as front, HTTPClient(edge.url, patient) as asked:
        await kill_all(front, asked, args, report)
    report(table_of(jsonl.read(args.output, ReplicaKill)))


def _append(path: Path, kill: ReplicaKill) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(msgspec.json.encode(kill) + b"\n")


def table_of(kills: list[ReplicaKill]) -> Table:
    """The sums over all kills."""
    table = Table("kills", "in flight at a kill", "seconds to ready", "answered", "degraded", "failed", "wrong")
    sums = [sum(getattr(kill, name) for kill in kills) for name in ("answered", "degraded", "failed", "wrong")]
    flights, seconds = [kill.in_flight for kill in kills], [kill.seconds for kill in kills]
    medians = f"{statistics.median(flights):g}", f"{statistics.median(seconds):.1f}"
    table.add_row(str(len(kills)), *medians, *map(str, sums))
    return table


def parser() -> argparse.ArgumentParser:
    options = config_parser("Kill replicas under load, and check every answer.")
    options.add_argument("--kills", type=count, default=20, help="kills of this run (default: 20)")
    options.add_argument("--clients", type=count, default=8, help="clients at once (default: 8)")
    options.add_argument("--minutes", type=positive, default=60, help="begin no kill after this time (default: 60)")
    options.add_argument("--output", type=Path, default=Path("logs/replica-kills.jsonl"), help="one line for each kill")
    return options


if __name__ == "__main__":
    sys.exit(run_program(measure(parser().parse_args())))
