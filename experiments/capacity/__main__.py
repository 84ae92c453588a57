"""How many clients does one cloud serve, and at what speed: alone, speculating by itself, and with drafts of edges?

    python -m experiments.capacity [--config FILE] [--set KEY=VALUE] [--clients 1,2,4,...,128] [--seconds 6]
        [--systems cloud,ngram,draft-model,lossless,gated] [--draft-ms MS] [--output DIR]

A real pair answers some questions first, lossless and gated. Then as many simulated edges repeat these rounds with the
real cloud, each at the pace of one edge, so that the cloud is measured and not one machine full of edges; for the
others, as many clients have the same answers streamed, by the same cloud, or by a stock `vllm serve` that speculates.
Clouds have all cores but the last, one busy at a time; edges and clients have the last one. A model of the cloud's
steps, fitted to all but the largest number of clients and compared with that one, says how it goes on.
"""

import argparse
import os
import random
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from rich.console import Console

from cli import terminal
from cli.args import amount, config_parser, count, load_config, positive, run_program
from common.cloud_client.pool import CloudPool
from common.config_schema import CommunicationConfig, HttpClientConfig
from common.errors import ConfigError
from common.http.client import HTTPClient
from experiments.capacity import report as capacity_report
from experiments.capacity.clients import CapacityPoint, Client, measure, stream_answers
from experiments.capacity.model import ClientWork
from experiments.capacity.recording import PairRecorder
from experiments.capacity.report import CapacityReport
from experiments.fleet.load import DraftedAnswer, FleetTally, SimulatedEdge, TenantLoad
from experiments.harness.environment import environment
from experiments.harness.options import OUTPUT_HELP, client_counts
from experiments.harness.progress import progress
from experiments.harness.servers import AskedServer, Site, pinned_apart, site
from experiments.questions import datasets
from experiments.report.document import ReportFiles

PEERS = {"ngram": AskedServer.NGRAM, "draft-model": AskedServer.DRAFT_MODEL}
SYSTEMS = tuple(capacity_report.TITLES)
PLAIN = HttpClientConfig(timeout=600.0, max_retries=0, connection_pool_size=1000, compression="none")
FOREVER = float("inf")


def parser() -> argparse.ArgumentParser:
    options = config_parser("Measure how many clients one cloud serves.")
    options.add_argument(
        "--clients", default="1,2,4,8,16,32,64,128", metavar="N", help="numbers of clients (default %(default)s)"
    )
    options.add_argument(
        "--systems", default=",".join(SYSTEMS), metavar="NAMES", help="what is compared (default %(default)s)"
    )
    options.add_argument(
        "--seconds", type=positive, default=6.0, help="of each system and number of clients (default %(default)g)"
    )
    options.add_argument("--questions", type=count, default=20, help="answers that are recorded (default %(default)s)")
    options.add_argument("--max-tokens", type=count, default=48, help="of the longest answer (default %(default)s)")
    options.add_argument(
        "--draft-ms", type=amount, help="a simulated edge's time for a token (default: the recorded edge's own)"
    )
    options.add_argument(
        "--output", default="logs/capacity", metavar="DIR", help=f"{OUTPUT_HELP} (default %(default)s)"
    )
    return options


async def main() -> None:
    args, console = parser().parse_args(), terminal.console()
    clients, systems = counts_of(args.clients), systems_of(args.systems)
    peers = [PEERS[name] for name in systems if name in PEERS]
    pinning = pinned_apart()
    async with site(args, settings(max(clients)), False, console.print, peers, pinning) as where:
        os.sched_setaffinity(0, pinning.edges)
        console.print("recording answers")
        works = await recorded(args, where, systems)
        points = await compared(works, where, clients, args.seconds, console)
    options = {name: value for name, value in vars(args).items() if name not in ("output", "set")}
    console.print("fitting the model of the cloud's steps")  # some seconds for each system
    alone = works[SYSTEMS[0]]
    found = CapacityReport(
        environment=environment(),
        options={"program": "-m experiments.capacity", **options},
        draft_ms=1e3 * alone.draft,
        acceptance=capacity_report.acceptance(alone),
        systems=capacity_report.results(works, points),
    )
    capacity_report.write(found, ReportFiles.at(args.output, capacity_report.NAME), console)


def counts_of(text: str) -> list[int]:
    """Numbers of clients in increasing order, a lone client first, whom all are compared with; raises ConfigError."""
    found = client_counts(text)
    if found[0] != 1 or len(found) < 3:
        raise ConfigError("--clients takes at least three numbers, 1 among them")
    return found


def systems_of(text: str) -> list[str]:
    """Raises ConfigError for an unknown name; the cloud alone, with which all compare, comes first in any case."""
    names = list(dict.fromkeys([SYSTEMS[0], *text.split(",")]))
    if unknown := [name for name in names if name not in SYSTEMS]:
        raise ConfigError(f"--systems: no {unknown[0]!r}; there are {', '.join(SYSTEMS)}")
    return names


def settings(clients: int) -> list[str]:
    """Exact arithmetic, and room for so many clients in one step of each cloud."""
    places = max(32, clients)
    return [
        "cloud.model.dtype=float32",
        "inference.fallback=false",
        f"cloud.admission.max_requests={4 * places}",
        f"cloud.draft_verifier.resident_sessions={places}",
        f"cloud.draft_verifier.batch.max_batch_size={places}",
    ]


async def recorded(args: argparse.Namespace, where: Site, systems: Sequence[str]) -> dict[str, ClientWork]:
    """What the clients of each system do: the lossless answers, or the gated ones, at the pace of the edge."""
    config = load_config(args)
    questions = datasets.load(datasets.spec_for(None, config), args.questions, 0).questions
    prompts = [question.prompt for question in questions]
    keys = config.communication
    async with (
        HTTPClient(where.urls[AskedServer.EDGE], PLAIN, keys.edge_api_key) as edge,
        CloudPool(reaching(where)) as clouds,
    ):
        recorder = PairRecorder(edge, clouds, config)
        answers = {
            gated: await recorder.record(prompts, gated, args.max_tokens) for gated in (False, "gated" in systems)
        }
    pace = recorder.estimates.draft_seconds if args.draft_ms is None else args.draft_ms / 1e3
    return {name: ClientWork(answers[name == "gated"], pace) for name in systems}


def reaching(where: Site) -> CommunicationConfig:
    """How an edge reaches the cloud, without a network between them."""
    return CommunicationConfig(cloud_endpoint=where.cloud_url)


async def compared(
    works: dict[str, ClientWork], where: Site, clients: Sequence[int], seconds: float, console: Console
) -> dict[str, list[CapacityPoint]]:
    """All systems in turn, in another order for each number of clients."""
    points: dict[str, list[CapacityPoint]] = {name: [] for name in works}
    with progress(console) as bar:
        task = bar.add_task("", total=len(clients) * len(works))
        for number in clients:
            for name in random.Random(number).sample([*works], len(works)):
                bar.update(task, description=f"{number} clients, {name}")
                async with clients_of(name, works[name], where) as client:
                    points[name].append(await measure(client, number, seconds))
                bar.advance(task)
    return points


@asynccontextmanager
async def clients_of(system: str, work: ClientWork, where: Site) -> AsyncIterator[Client]:
    """What one of many clients of a system does."""
    if system in capacity_report.EDGES:
        load = TenantLoad(system, weight=1, edges=1, draft_ms=1e3 * work.draft)
        yield partial(simulated_edge, load, reaching(where), work.answers)
        return
    url = where.peers[PEERS[system]].url if system in PEERS else where.cloud_url
    async with HTTPClient(url, PLAIN) as cloud:
        yield partial(stream_answers, cloud, work.answers)


async def simulated_edge(
    load: TenantLoad, config: CommunicationConfig, answers: Sequence[DraftedAnswer], number: int, tally: FleetTally
) -> None:
    await SimulatedEdge(load, config, tally, number).run(answers, FOREVER)


if __name__ == "__main__":
    sys.exit(run_program(main()))
