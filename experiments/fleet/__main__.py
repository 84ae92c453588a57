"""Many edges at a few clouds: is everybody served its share, does nobody wait for a flood, is memory flat?

    python -m experiments.fleet [--config FILE] [--set KEY=VALUE] [--minutes 10] [--edges 100] [--replicas 2]
        [--clouds URL,URL] [--output DIR]

A real edge and a cloud answer some questions first; their drafts are then replayed by simulated edges of several
tenants, at an edge's pace, against real clouds, which are started here or named by --clouds. The tenants: `gold` has
three times the weight of the others, `small` asks for less than its share, `flood` drafts in almost no time and so asks
for as much as it can, and the requests of `night` are batches. An edge that is refused (429) answers alone.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from cli import terminal
from cli.args import config_parser, count, load_config, positive, run_program
from common.cloud_client.pool import CloudPool
from common.config_schema import CommunicationConfig
from common.config_values import Secret
from common.http.client import HTTPClient
from experiments.counters import scrape
from experiments.counters.vitals import Vitals, sample
from experiments.fleet import load as fleet_load
from experiments.fleet import report as fleet_report
from experiments.fleet.load import DraftedAnswer, FleetTally, SimulatedEdge, TenantLoad
from experiments.fleet.report import FleetReport
from experiments.harness import servers
from experiments.harness.environment import environment
from experiments.harness.options import OUTPUT_HELP
from experiments.harness.progress import of_time, shown
from experiments.questions import datasets
from experiments.report.document import ReportFiles

LOADS = (
    TenantLoad("gold", weight=3, edges=26, draft_ms=35),
    TenantLoad("silver", weight=1, edges=26, draft_ms=35),
    TenantLoad("small", weight=1, edges=1, draft_ms=35),
    TenantLoad("flood", weight=1, edges=37, draft_ms=10),
    TenantLoad("night", weight=1, edges=10, draft_ms=35, batch=True),
)
"""Of 100 edges. 35 ms is what a model of 0.5B parameters takes on one core."""
SAMPLE_SECONDS = 5.0
TURNS = {"turns": "edgecloud_turns_total", "seconds": "edgecloud_turn_seconds_total"}
FLAGS = (
    ("--edges", 100, "simulated edges"),
    ("--replicas", 2, "clouds that are started"),
    ("--questions", 40, "answers that are recorded and replayed"),
    ("--draft-tokens", 8, "tokens of a draft"),
    ("--max-tokens", 48, "tokens of the longest answer"),
    ("--places", 4, "sequences in a step of a cloud's engine"),
    ("--room", 32, "requests that a cloud takes at once (cloud.admission.max_requests)"),
)


def parser() -> argparse.ArgumentParser:
    options = config_parser("Replay the drafts of many edges against a few clouds.")
    options.add_argument("--minutes", type=positive, default=10.0, help="how long (default %(default)g)")
    for name, default, meaning in FLAGS:
        options.add_argument(name, type=count, default=default, help=f"{meaning} (default {default})")
    options.add_argument("--clouds", default="", metavar="URLS", help="clouds that run already (default: start some)")
    options.add_argument("--output", type=Path, default=Path(), metavar="DIR", help=OUTPUT_HELP)
    return options


async def main() -> None:
    args = parser().parse_args()
    options = {name: value for name, value in vars(args).items() if name not in ("output", "set")}
    loads = of_size(LOADS, args.edges)
    config = load_config(args)
    found = datasets.load(datasets.spec_for(None, config), args.questions, 0)
    async with sites(args, loads) as (edge_url, clouds):
        async with HTTPClient(edge_url) as edge, CloudPool(towards(clouds, loads[0])) as pool:
            questions = [question.prompt for question in found.questions]
            answers = await fleet_load.record(edge, pool, questions, args.draft_tokens, args.max_tokens)
        tally, samples = await run(loads, clouds, answers, 60 * args.minutes)
    seconds = 60 * args.minutes
    report = FleetReport(
        environment=environment(),
        options={"program": "-m experiments.fleet", **options},
        seconds=seconds,
        tenants=fleet_report.results(tally, loads, seconds),
        windows=fleet_report.windows(tally.rounds, seconds),
        failures=tally.failures,
        samples=samples,
    )
    for sentence in fleet_report.write(report, ReportFiles.at(args.output, fleet_report.NAME)).summary:
        terminal.console().print(str(sentence), markup=False)


def of_size(loads: Sequence[TenantLoad], edges: int) -> list[TenantLoad]:
    """The tenants with about `edges` edges together, one each at least."""
    all_edges = sum(load.edges for load in loads)
    return [
        TenantLoad(load.name, load.weight, max(1, round(load.edges * edges / all_edges)), load.draft_ms, load.batch)
        for load in loads
    ]


@asynccontextmanager
async def sites(args: argparse.Namespace, loads: Sequence[TenantLoad]) -> AsyncIterator[tuple[str, list[str]]]:
    """The URLs of an edge and of the clouds; those that are named are only asked."""
    keys = json.dumps([{"api_key": load.key, "weight": load.weight} for load in loads])
    settings = (
        "cloud.model.dtype=float32",
        f"cloud.admission.keys={keys}",
        f"cloud.admission.max_requests={args.room}",
        f"cloud.draft_verifier.batch.max_batch_size={args.places}",
        f"communication.cloud_api_key={loads[0].key}",
    )
    named = [url for url in args.clouds.split(",") if url]
    async with servers.replicas(args, settings, named or args.replicas, terminal.console().print) as site:
        yield site


def towards(clouds: Sequence[str], load: TenantLoad) -> CommunicationConfig:
    """How an edge of a tenant reaches the clouds."""
    first, *others = clouds
    return CommunicationConfig(cloud_endpoint=first, cloud_endpoints=others, cloud_api_key=Secret(load.key))


async def run(
    loads: Sequence[TenantLoad], clouds: Sequence[str], answers: Sequence[DraftedAnswer], seconds: float
) -> tuple[FleetTally, list[Vitals]]:
    """All edges at once, for so long, and samples of the servers meanwhile."""
    tally, samples = FleetTally(), list[Vitals]()
    turns, seconds_before = await engine_turns(clouds, loads[0])
    sampling = asyncio.create_task(_sample_on(samples, tally.began))
    edges = [(load, number) for load in loads for number in range(load.edges)]
    try:
        async with shown(terminal.console(), "edges", of_time(seconds)), asyncio.TaskGroup() as group:
            for seed, (load, _) in enumerate(edges):
                edge = SimulatedEdge(load, towards(clouds, load), tally, seed)
                group.create_task(edge.run(answers, tally.began + seconds))
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
    turns_after, seconds_after = await engine_turns(clouds, loads[0])
    tally.turn_seconds = (seconds_after - seconds_before) / max(1.0, turns_after - turns)
    return tally, samples


async def engine_turns(clouds: Sequence[str], load: TenantLoad) -> tuple[float, float]:
    """How many turns the engines of all `clouds` have ended so far, and the seconds that these took."""
    found = []
    for url in clouds:
        async with HTTPClient(url, api_key=Secret(load.key)) as cloud:
            found.append(scrape.totals(await scrape.page(cloud), TURNS))
    return sum(one["turns"] for one in found), sum(one["seconds"] for one in found)


async def _sample_on(samples: list[Vitals], began: float) -> None:
    while True:
        samples += await asyncio.to_thread(sample, time.monotonic() - began)
        await asyncio.sleep(SAMPLE_SECONDS)


if __name__ == "__main__":
    sys.exit(run_program(main()))
