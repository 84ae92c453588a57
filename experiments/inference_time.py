"""Measures the time of a split model's answers and its parts: edge, cloud and communication.

python -m experiments.inference_time [--threshold T] [--round-trips 0,14,...] [--uplinks 2,20,...] [--clients 1,4,16]

Cloud only (the whole model in vLLM, streamed through the edge), a naive split, the layer split and the layer split with
parts switched off take turns over a simulated network. Total = edge + cloud + communication: edge is all the time in
which the edge does not wait for the cloud, cloud is the cloud's own time, communication is the rest.

With sweeps (--round-trips, --uplinks, --clients) the same questions are also asked under each of these load conditions;
what is not swept is as --network says, with one client.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from calibration.split.levels import NEVER
from cli import terminal
from cli.args import amount, run_program
from experiments.harness import experiment
from experiments.harness.options import numbers
from experiments.harness.trials import ExperimentPlan, LoadCondition, Network, TrialResult
from experiments.report.schema import ConfigurationReport, ExperimentReport, ReportTable
from experiments.setup.ablations import CLOUD_ONLY, Ablation
from experiments.split import paper, time_saved, variants
from experiments.split.time_saved import saved

NAME = "inference_time"
QUESTIONS, REPEATS, BLOCK = 40, 2, 4
OURS = "split"
ROUND_TRIPS, UPLINKS, CLIENTS = "0,14,50,100", "2,20,80", "1,4,16"


async def main() -> None:
    parser = variants.parser(__doc__.partition("\n")[0], QUESTIONS, REPEATS, f"logs/{NAME}")
    parser.add_argument("--threshold", type=amount, help="of all exits (default: each its own, as the config says)")
    parser.add_argument(
        "--round-trips", default="", metavar="MS", help=f"sweep over round trips in ms, for example {ROUND_TRIPS}"
    )
    parser.add_argument(
        "--uplinks", default="", metavar="MBIT", help=f"sweep over bandwidths in Mbit/s, for example {UPLINKS}"
    )
    parser.add_argument(
        "--clients", default="", metavar="N", help=f"sweep over concurrent clients, for example {CLIENTS}"
    )
    args, console = parser.parse_args(), terminal.console()
    base = experiment.base_config(args, variants.SETTINGS)
    title, conditions = "How long a split model takes", load_conditions(args)
    kind = variants.kind(NAME, title, base, CLOUD_ONLY, finish, block=BLOCK, cells=conditions)
    await experiment.run(args, ablations(args.threshold), base, console, kind)


def ablations(threshold: float | None) -> list[Ablation]:
    """Everything that is compared; the first is the baseline."""
    ours = partial(variants.split, threshold)
    return [
        CLOUD_ONLY,
        variants.NAIVE,
        ours(OURS),
        variants.split(NEVER, "no_exits"),
        replace(
            ours("no_context_manager", "; the cloud keeps nothing between two tokens"),
            edge="experiments.split.forgetful_edge",
        ),
        ours("no_async_upload", "; states go up only when the cloud is asked", async_upload=False),
        ours("no_fp16", "; states go up in fp32", transfer="fp32"),
        ours("int8", "; states go up in int8", transfer="int8"),
    ]


def load_conditions(args: argparse.Namespace) -> list[LoadCondition]:
    """The condition of --network, then those of the sweeps."""
    at = experiment.network_of(args.network)
    conditions = [LoadCondition(at)]
    conditions += [LoadCondition(Network(ms, at.mbit)) for ms in swept(args.round_trips, "--round-trips")]
    conditions += [
        LoadCondition(Network(at.round_trip_ms, mbit)) for mbit in swept(args.uplinks, "--uplinks") if mbit > 0
    ]
    conditions += [LoadCondition(at, int(n)) for n in swept(args.clients, "--clients") if n >= 1]
    return list(dict.fromkeys(conditions))


def swept(text: str, option: str) -> list[float]:
    """The numbers of a sweep; none for an option that is not given."""
    return numbers(text, option) if text else []


def finish(report: ExperimentReport, plan: ExperimentPlan, entries: Sequence[TrialResult]) -> None:
    """Adds the times and their parts, the paper's figures, what each part saves, and the sweeps."""
    names = [one.name for one in report.configurations if one.name != CLOUD_ONLY.name]
    report.tables += [times(report, entries), beside_paper(report)]
    report.findings += [
        f"{name}: {change} time against cloud only" for name in names if (change := saved(entries, name, 0))
    ]
    report.findings += switched_off(report)
    if len(plan.cells) > 1:
        report.tables.append(time_saved.table(plan, names, entries))
        report.charts += time_saved.charts(plan, names, entries)


def times(report: ExperimentReport, entries: Sequence[TrialResult]) -> ReportTable:
    """The mean time of an answer and its parts, a row for each configuration."""
    rows = []
    for one in report.configurations:
        m = one.measures
        parts = ("latency_mean_ms", "cloud_ms", "edge_ms", "communication_ms")
        cells = [f"{m[name].value:.1f}" if name in m else "–" for name in parts]
        against = "" if one.name == CLOUD_ONLY.name else str(saved(entries, one.name, 0) or "–")
        rate = f"{m['cloud_rate'].value:.1%}" if "cloud_rate" in m else "–"
        rows.append([one.name, *cells, against, rate])
    return ReportTable(
        title="Milliseconds per answer",
        heads=[
            "configuration",
            "total",
            "cloud",
            "edge",
            "communication",
            "total against cloud only",
            "cloud request rate",
        ],
        rows=rows,
        note="Means. Against cloud only: the time of all answers together, with the 95 % interval over questions.",
    )


def beside_paper(report: ExperimentReport) -> ReportTable:
    """Seconds for 100 answers, in the paper's columns."""
    rows = [
        [f"paper, {one.method}", f"{one.total:g}", f"{one.cloud:g}", f"{one.edge:g}", f"{one.communication:g}"]
        for one in paper.TIMES
    ]
    for one in report.configurations:
        parts = ("latency_mean_ms", "cloud_ms", "edge_ms", "communication_ms")
        if all(name in one.measures for name in parts):
            rows.append([f"here, {one.name}", *(f"{one.measures[name].value / 10:.2f}" for name in parts)])
    return ReportTable(
        title="Beside the paper: seconds for 100 answers",
        heads=["", "total", "cloud", "edge", "communication"],
        rows=rows,
        note="The paper's figures are for Alpaca on its own hardware; it saves "
        f"{paper.TIME_SAVED:.2%} of cloud only's time.",
    )


def switched_off(report: ExperimentReport) -> list[str]:
    """What changes without exits, context manager, asynchronous upload and fp16, and with int8."""
    by_name = {one.name: one for one in report.configurations}
    return [
        sentence
        for name in ("no_exits", "no_context_manager", "no_async_upload", "no_fp16", "int8")
        if name in by_name and OURS in by_name and (sentence := against(by_name[name], by_name[OURS]))
    ]


def against(one: ConfigurationReport, ours: ConfigurationReport) -> str | None:
    """The differences from the full layer split in time and bytes; None where they were not measured."""
    wanted = "latency_mean_ms", "bytes"
    if not all(name in m for name in wanted for m in (one.measures, ours.measures)):
        return None
    ms, sent = (one.measures[name].value - ours.measures[name].value for name in wanted)
    base = ours.measures["latency_mean_ms"].value
    return f"{one.name}: {ms:+.1f} ms per answer ({ms / base:+.1%}) and {sent:+,.0f} bytes against {OURS}"


if __name__ == "__main__":
    sys.exit(run_program(main()))
