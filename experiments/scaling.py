"""How throughput and latency change with the number of clients that ask at once, for some ways of answering.

    python -m experiments.scaling [--clients 1,2,4,8,16,32] [--only baseline,no_confidence,edge_only,cloud_only]
        [--questions 128] [--resume] [--output DIR]

Each client asks its next question when it has its answer. A trial asks as many questions as the largest number of
clients, the same of every configuration, one after another in an order drawn anew. Both servers have room for all.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from rich.console import Console

from cli import terminal
from cli.args import run_program
from common.errors import ConfigError
from common.types import Mode
from experiments.harness import experiment, measures
from experiments.harness.experiment import ExperimentKind
from experiments.harness.measures import Quantile, RatioOfSums, count, time
from experiments.harness.options import numbers
from experiments.harness.trials import ExperimentPlan, TrialResult
from experiments.report.schema import Curves, ExperimentReport, MeasureInfo, Series, SweepDescription
from experiments.report.words import counted
from experiments.setup import ablations
from experiments.setup.ablations import Ablation

QUESTIONS, REPEATS = 128, 1
"""So that all numbers of clients take about 9 minutes on two cores."""
CLIENTS = "1,2,4,8,16,32"
ONLY = "baseline,no_confidence,edge_only,cloud_only"
MOST = 64
"""Conversations that an edge can hold."""
FEW = 10
"""Trials; the bootstrap of fewer gives intervals that are too narrow."""
NAME = "scaling_report"

THROUGHPUT = RatioOfSums(lambda asked: sum(row.tokens for row in asked.rows), lambda asked: asked.seconds)
STEPS = RatioOfSums(
    lambda asked: sum(each.cloud.steps for each in asked.counts), lambda asked: sum(row.tokens for row in asked.rows)
)
MEASURES = {
    "throughput": time("Throughput", THROUGHPUT, unit="tokens/s"),
    "first_token_p95_ms": time("Time to first token, 95th percentile", Quantile(0.95, lambda row: row.first_token_ms)),
    "cloud_steps_per_token": count("Cloud steps", "per token", "lower", STEPS, exact=False),
}
"""Throughput is of all clients together; a cloud step is counted once, for however many it computes."""
RELATIVE = {
    "over_one_client": MeasureInfo("Speed-up over the fewest clients", "", "higher", counted=False),
    "over_cloud_only": MeasureInfo("Speed-up over cloud only", "", "higher", counted=False),
}
PLOTS = [
    Curves(y=name)
    for name in (
        "throughput", "over_one_client", "over_cloud_only", "latency_p50_ms", "latency_p95_ms", "first_token_p50_ms",
        "cloud_steps_per_token",
    )
]  # fmt: skip


def settings(clients: Sequence[int]) -> list[str]:
    """Servers with room for all clients at once. How they answer is the config's own: time is what is measured."""
    most = max(clients)
    return [
        "cloud.model.dtype=float32",
        "inference.fallback=false",
        f"edge.model.sequences={max(4, most)}",
        f"cloud.draft_verifier.resident_sessions={max(32, most)}",
        f"cloud.draft_verifier.batch.max_batch_size={2 * max(32, most)}",
    ]


def clients_of(text: str) -> list[int]:
    """In their order; raises ConfigError."""
    found = numbers(text, "--clients")
    if not all(number.is_integer() and 1 <= number <= MOST for number in found):
        raise ConfigError(f"--clients takes whole numbers from 1 to {MOST}, not {text!r}")
    return sorted(map(int, found))


def series(ways: Sequence[Ablation], clients: Sequence[int]) -> list[tuple[Series, list[Ablation]]]:
    """A curve for each way of answering."""
    found = []
    for way in ways:
        points = [
            Ablation(
                name=f"{way.name}, {counted(n, 'client')}",
                description=way.description,
                config_overrides=way.config_overrides,
                mode=way.mode,
                clients=n,
            )
            for n in clients
        ]
        at = [float(n) for n in clients]
        found.append((Series(name=way.name, configurations=[one.name for one in points], at=at), points))
    return found


def finish(
    swept: Sequence[Series],
    cloud_only: Series | None,
    report: ExperimentReport,
    plan: ExperimentPlan,
    entries: Sequence[TrialResult],
) -> None:
    """Puts the curves into the report, and how many times each throughput is that of one client, and of cloud only."""
    samples = {
        one.name: measures.sample(entry for entry in entries if entry.what.configuration == one.name)
        for one in plan.configurations
    }
    by_name, definition = {one.name: one for one in report.configurations}, MEASURES["throughput"]
    for one in swept:
        for place, name in enumerate(one.configurations):
            bases = {"over_one_client": one.configurations[0]}
            if cloud_only is not None and one is not cloud_only:
                bases["over_cloud_only"] = cloud_only.configurations[place]
            for measure, base in bases.items():
                if found := measures.relative(definition, samples[name], samples[base]):
                    by_name[name].measures[measure] = found
                    report.measures[measure] = RELATIVE[measure]
    drawn = min(map(len, samples.values()))
    if drawn < FEW:
        report.warnings.append(
            f"intervals are over {counted(drawn, 'trial')} of {counted(plan.block, 'question')}, which are few: "
            "read them as a lower bound of what is uncertain; more --questions are more trials"
        )
    report.sweep = SweepDescription(parameter="Clients", series=list(swept), plots=list(PLOTS))


def parser() -> argparse.ArgumentParser:
    made = experiment.parser("Measure throughput and latency over the number of clients.", QUESTIONS, REPEATS)
    made.add_argument("--clients", default=CLIENTS, metavar="N", help="that ask at once (default %(default)s)")
    made.add_argument("--only", default=ONLY, metavar="NAMES", help="ablations to compare (default: %(default)s)")
    return made


async def main() -> None:
    await measure(parser().parse_args(), terminal.console())


async def measure(args: argparse.Namespace, console: Console) -> ExperimentReport:
    """Raises as experiment.run does, and ConfigError for options that make no sense."""
    clients = clients_of(args.clients)
    base = experiment.base_config(args, settings(clients))
    ways = ablations.chosen(args.only, base.experiments.ablations)
    curves = series(ways, clients)
    cloud_only = next((one for (one, _), way in zip(curves, ways, strict=True) if way.mode is Mode.CLOUD_ONLY), None)
    kind = ExperimentKind(
        program="-m experiments.scaling",
        settings=settings(clients),
        asked={"block": max(clients)},
        settled=False,
        measures={**measures.MEASURES, **MEASURES},
        finish=partial(finish, [one for one, _ in curves], cloud_only),
    )
    chosen = [point for _, points in curves for point in points]
    return await experiment.run(args, chosen, base, "Many clients at once", NAME, console, kind)


if __name__ == "__main__":
    sys.exit(run_program(main()))
