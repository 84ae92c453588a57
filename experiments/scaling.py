"""Measures throughput and latency over the number of concurrent clients, for some ablations.

    python -m experiments.scaling [--clients 1,2,4,8,16,32] [--only baseline,no_confidence,edge_only,cloud_only]
        [--questions 128] [--resume] [--output DIR]

Each client sends its next question when it has its answer. A trial has as many questions as the largest number of
clients. All configurations answer the same questions, one configuration after another in a newly drawn order. Both
servers have room for all clients.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from rich.console import Console

from cli import terminal
from cli.args import run_program
from common.types import Mode
from experiments.harness import comparison, experiment, measures
from experiments.harness.experiment import ExperimentKind
from experiments.harness.measures import Quantile, RatioOfSums, count, time
from experiments.harness.options import client_counts
from experiments.harness.trials import ExperimentPlan, TrialResult
from experiments.report.schema import Curves, ExperimentReport, MeasureInfo, Series, SweepDescription
from experiments.report.words import counted
from experiments.setup import ablations
from experiments.setup.ablations import Ablation

QUESTIONS, REPEATS = 128, 1
"""All numbers of clients take about 8 minutes on 2 cores."""
CLIENTS = "1,2,4,8,16,32"
ONLY = "baseline,no_confidence,edge_only,cloud_only"
MAX_CLIENTS = 64
"""The largest number of sequences of an edge."""
FEW_TRIALS = 10
"""With fewer trials, the bootstrap's intervals are too narrow."""
NAME = "scaling_report"

THROUGHPUT = RatioOfSums(lambda unit: sum(row.tokens for row in unit.rows), lambda unit: unit.seconds)
STEPS = RatioOfSums(
    lambda unit: sum(each.cloud.steps for each in unit.counts), lambda unit: sum(row.tokens for row in unit.rows)
)
MEASURES = {
    "throughput": time("Throughput", THROUGHPUT, unit="tokens/s"),
    "first_token_p95_ms": time("Time to first token, 95th percentile", Quantile(0.95, lambda row: row.first_token_ms)),
    "cloud_steps_per_token": count("Cloud steps", "per token", "lower", STEPS, exact=False),
}
"""Throughput is of all clients together. An engine step counts once, however many requests it computes."""
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
    """Settings that give both servers room for all clients. The verification mode is the config's own."""
    count = max(clients)
    return [
        "cloud.model.dtype=float32",
        "inference.fallback=false",
        f"edge.model.sequences={max(4, count)}",
        f"cloud.draft_verifier.resident_sessions={max(32, count)}",
        f"cloud.draft_verifier.batch.max_batch_size={2 * max(32, count)}",
    ]


def series(ablations: Sequence[Ablation], clients: Sequence[int]) -> list[tuple[Series, list[Ablation]]]:
    """A curve over the number of clients for each ablation, with its points."""
    curves = []
    for ablation in ablations:
        points = [
            Ablation(
                name=f"{ablation.name}, {counted(n, 'client')}",
                description=ablation.description,
                config_overrides=ablation.config_overrides,
                mode=ablation.mode,
                clients=n,
            )
            for n in clients
        ]
        at = [float(n) for n in clients]
        curves.append((Series(name=ablation.name, configurations=[one.name for one in points], at=at), points))
    return curves


def finish(
    swept: Sequence[Series],
    cloud_only: Series | None,
    report: ExperimentReport,
    plan: ExperimentPlan,
    entries: Sequence[TrialResult],
) -> None:
    """Adds to the report the curves, and each throughput over the one with the fewest clients and over cloud only."""
    samples = {
        one.name: measures.sample(entry for entry in entries if entry.what.configuration == one.name)
        for one in plan.configurations
    }
    by_name, definition = {one.name: one for one in report.configurations}, MEASURES["throughput"]
    for one in swept:
        for number, name in enumerate(one.configurations):
            bases = {"over_one_client": one.configurations[0]}
            if cloud_only is not None and one is not cloud_only:
                bases["over_cloud_only"] = cloud_only.configurations[number]
            for measure, base in bases.items():
                if ratio := comparison.ratio(definition, samples[name], samples[base]):
                    by_name[name].measures[measure] = ratio
                    report.measures[measure] = RELATIVE[measure]
    units = min(map(len, samples.values()))
    if units < FEW_TRIALS:
        report.warnings.append(
            f"intervals are over {counted(units, 'trial')} of {counted(plan.block, 'question')}, which are few: "
            "the true uncertainty is larger; more --questions give more trials"
        )
    report.sweep = SweepDescription(parameter="Clients", series=list(swept), plots=list(PLOTS))


def parser() -> argparse.ArgumentParser:
    options = experiment.parser(
        "Measure throughput and latency over the number of concurrent clients.", QUESTIONS, REPEATS
    )
    options.add_argument(
        "--clients", default=CLIENTS, metavar="N", help="numbers of concurrent clients (default %(default)s)"
    )
    options.add_argument("--only", default=ONLY, metavar="NAMES", help="ablations to compare (default: %(default)s)")
    return options


async def main() -> None:
    await measure(parser().parse_args(), terminal.console())


async def measure(args: argparse.Namespace, console: Console) -> ExperimentReport:
    """Raises as experiment.run does, and ConfigError for invalid options."""
    clients = client_counts(args.clients, MAX_CLIENTS)
    base = experiment.base_config(args, settings(clients))
    compared = ablations.chosen(args.only, base.experiments.ablations)
    curves = series(compared, clients)
    cloud_only = next(
        (one for (one, _), each in zip(curves, compared, strict=True) if each.mode is Mode.CLOUD_ONLY), None
    )
    kind = ExperimentKind(
        title="Many clients at once",
        name=NAME,
        program="-m experiments.scaling",
        settings=settings(clients),
        plan_fields={"block": max(clients)},
        settle_first=False,
        measures={**measures.MEASURES, **MEASURES},
        finish=partial(finish, [one for one, _ in curves], cloud_only),
    )
    chosen = [point for _, points in curves for point in points]
    return await experiment.run(args, chosen, base, console, kind)


if __name__ == "__main__":
    sys.exit(run_program(main()))
