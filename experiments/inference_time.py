"""How long a split model takes for an answer, and what takes it: python -m experiments.inference_time [options]

Cloud only (the whole model in vLLM, streamed through the edge), a naive split, the layer split, and the layer split
with parts of it off, in turn, through a simulated network. Total = edge + cloud + communication: the edge's is all the
time in which it does not wait for the cloud, the cloud's what the cloud says it took, communication the rest.

With sweeps (--round-trips, --uplinks, --clients) the same questions are asked at each of these, the others as --network
says and with one client.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from cli import terminal
from cli.args import run_program
from experiments.harness import experiment
from experiments.harness.options import numbers
from experiments.harness.trials import ExperimentPlan, LoadCondition, Network, TrialResult
from experiments.report.schema import ConfigurationReport, ExperimentReport, ReportTable
from experiments.setup.ablations import CLOUD_ONLY, Ablation
from experiments.split import compared, paper, time_saved
from experiments.split.time_saved import saved

NAME = "inference_time"
QUESTIONS, REPEATS, BLOCK = 40, 2, 4
OURS = "split"
ROUND_TRIPS, UPLINKS, CLIENTS = "0,14,50,100", "2,20,80", "1,4,16"


async def main() -> None:
    parser = compared.parser(__doc__.partition("\n")[0], QUESTIONS, REPEATS, f"logs/{NAME}")
    parser.add_argument("--threshold", type=float, default=0.8, help="of the exits (default %(default)s)")
    parser.add_argument("--round-trips", default="", metavar="MS", help=f"a sweep, as in {ROUND_TRIPS}")
    parser.add_argument("--uplinks", default="", metavar="MBIT", help=f"a sweep, as in {UPLINKS}")
    parser.add_argument("--clients", default="", metavar="N", help=f"a sweep, as in {CLIENTS}")
    args, console = parser.parse_args(), terminal.console()
    base = experiment.base_config(args, compared.SETTINGS)
    cells = cells_of(args)
    kind = compared.kind(base, CLOUD_ONLY, f"-m experiments.{NAME}", added, block=BLOCK, cells=cells)
    await experiment.run(args, ways(args.threshold), base, "How long a split model takes", NAME, console, kind)


def ways(threshold: float) -> list[Ablation]:
    ours = partial(compared.split, threshold)
    return [
        CLOUD_ONLY,
        compared.NAIVE,
        ours(OURS),
        ours("no_async_upload", "; states go up only when the cloud is asked", async_upload=False),
        ours("no_fp16", "; states go up in fp32", transfer="fp32"),
        ours("int8", "; states go up in int8", transfer="int8"),
    ]


def cells_of(args: argparse.Namespace) -> list[LoadCondition]:
    """The one of --network first, then those of the sweeps."""
    at = experiment.network_of(args.network)
    found = [LoadCondition(at)]
    found += [LoadCondition(Network(ms, at.mbit)) for ms in swept(args.round_trips, "--round-trips")]
    found += [LoadCondition(Network(at.round_trip_ms, mbit)) for mbit in swept(args.uplinks, "--uplinks") if mbit > 0]
    found += [LoadCondition(at, int(n)) for n in swept(args.clients, "--clients") if n >= 1]
    return list(dict.fromkeys(found))


def swept(text: str, option: str) -> list[float]:
    return numbers(text, option) if text else []


def added(report: ExperimentReport, plan: ExperimentPlan, entries: Sequence[TrialResult]) -> None:
    """The paper's columns, what each part costs, and the sweeps."""
    names = [one.name for one in report.configurations if one.name != CLOUD_ONLY.name]
    report.tables += [times(report, entries), beside_paper(report)]
    report.findings += [
        f"{name}: {told} time against cloud only" for name in names if (told := saved(entries, name, 0))
    ]
    report.findings += off(report)
    if len(plan.cells) > 1:
        report.tables.append(time_saved.table(plan, names, entries))
        report.charts += time_saved.charts(plan, names, entries)


def times(report: ExperimentReport, entries: Sequence[TrialResult]) -> ReportTable:
    rows = []
    for one in report.configurations:
        m = one.measures
        parts = ("latency_mean_ms", "cloud_ms", "edge_ms", "communication_ms")
        cells = [f"{m[name].value:.1f}" if name in m else "–" for name in parts]
        against = "" if one.name == CLOUD_ONLY.name else str(saved(entries, one.name, 0) or "–")
        rate = f"{m['cloud_rate'].value:.1%}" if "cloud_rate" in m else "–"
        rows.append([one.name, *cells, against, rate])
    return ReportTable(
        title="Milliseconds of an answer",
        heads=["way", "total", "cloud", "edge", "communication", "total against cloud only", "cloud request rate"],
        rows=rows,
        note="Means. Against cloud only: all seconds of all questions, with the interval that holds 95 % of what other "
        "questions of this kind would give.",
    )


def beside_paper(report: ExperimentReport) -> ReportTable:
    """Seconds for 100 answers, as the paper has them."""
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
        note=f"The paper's are of Alpaca on its own hardware; against cloud only it saves {paper.TIME_SAVED:.2%}.",
    )


def off(report: ExperimentReport) -> list[str]:
    """What asynchronous upload and fp16 are worth: the same without them."""
    by_name = {one.name: one for one in report.configurations}
    return [
        told
        for name in ("no_async_upload", "no_fp16", "int8")
        if name in by_name and OURS in by_name and (told := against(by_name[name], by_name[OURS]))
    ]


def against(one: ConfigurationReport, ours: ConfigurationReport) -> str | None:
    wanted = "latency_mean_ms", "bytes"
    if not all(name in m for name in wanted for m in (one.measures, ours.measures)):
        return None
    ms, sent = (one.measures[name].value - ours.measures[name].value for name in wanted)
    base = ours.measures["latency_mean_ms"].value
    return f"{one.name}: {ms:+.1f} ms an answer ({ms / base:+.1%}) and {sent:+,.0f} bytes against {OURS}"


if __name__ == "__main__":
    sys.exit(run_program(main()))
