"""Measures the quality of a split model's answers over the exit threshold.

python -m experiments.accuracy_eval [--task boolq:PATH] [--mode collaborative] [--thresholds 0.5,0.6,...]
                                     [--clients 1]

It compares standalone (no cloud), the layer split at each threshold, and cloud only, on the held-out questions or on
another data set (--task, which is --data); and the split with a threshold for each exit, if `edge.split.thresholds` has
several. The cloud's work is in layer-tokens: positions that the tail computed times
its layers, over positions of prompt and answer times all layers.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from msgspec import structs

from cli import terminal
from cli.args import count, run_program
from experiments.harness import experiment
from experiments.harness.options import numbers
from experiments.harness.trials import ExperimentPlan, TrialResult
from experiments.report.schema import Chart, ConfigurationReport, ExperimentReport, Measure, ReportTable
from experiments.setup.ablations import CLOUD_ONLY, Ablation
from experiments.split import paper, variants

NAME = "accuracy_eval"
QUESTIONS, REPEATS, BLOCK = 200, 1, 4
THRESHOLDS = "0.5,0.6,0.7,0.8,0.9,0.95,1"
MODES = COLLABORATIVE, STANDALONE = "collaborative", "standalone"
WITHIN = 0.01
"""Quality may be this much below cloud only's and still count as equal."""


async def main() -> None:
    args, console = parser().parse_args(), terminal.console()
    wanted = sorted(numbers(args.thresholds, "--thresholds")) if args.mode != STANDALONE else []
    base = experiment.base_config(args, variants.SETTINGS)
    title = "Quality of a split model's answers"
    kind = variants.kind(NAME, title, base, CLOUD_ONLY, partial(finish, wanted), block=max(BLOCK, args.clients))
    own = args.mode != STANDALONE and len(base.edge.split.thresholds) > 1
    compared = [structs.replace(one, clients=args.clients) for one in ablations(args.mode, wanted, own)]
    await experiment.run(args, compared, base, console, kind)


def parser() -> argparse.ArgumentParser:
    options = variants.parser(__doc__.partition("\n")[0], QUESTIONS, REPEATS, f"logs/{NAME}")
    options.add_argument(
        "--thresholds", default=THRESHOLDS, metavar="NUMBERS", help="thresholds of the exits (default %(default)s)"
    )
    options.add_argument("--task", dest="data", metavar="FILE|NAME", help="the same as --data")
    options.add_argument(
        "--mode", choices=MODES, help="only this of the split's modes, beside cloud only (default: both)"
    )
    options.add_argument("--clients", type=count, default=1, help="concurrent clients (default %(default)s)")
    return options


def ablations(mode: str | None, thresholds: Sequence[float], own: bool = False) -> list[Ablation]:
    """What is compared; `mode`: one of MODES, or None for both. `own`: also each exit's own threshold in the config."""
    alone = [variants.STANDALONE] if mode != COLLABORATIVE else []
    configured = [variants.split(None, "split, thresholds of the config")] if own else []
    return [*alone, *map(variants.split, thresholds), *configured, CLOUD_ONLY]


def finish(
    thresholds: Sequence[float], report: ExperimentReport, plan: ExperimentPlan, entries: Sequence[TrialResult]
) -> None:
    """Adds the sweep as a table and as curves, the paper's figures, and the threshold to choose."""
    report.tables += [sweep(report), beside_paper(report)]
    by_name = {one.name: one for one in report.configurations}
    swept = [(threshold, by_name[f"split {threshold:g}"]) for threshold in thresholds]
    report.findings += findings(swept, by_name[CLOUD_ONLY.name])
    if not swept:
        return
    cloud = by_name[CLOUD_ONLY.name].measures
    report.charts += [
        Chart(
            name="sweep", title="Quality and cloud work over the threshold", x="threshold", y="share",
            note="Dashed: quality of cloud only. Cloud work is in layer-tokens, as a share of the whole model's.",
            level=cloud["quality"].value if "quality" in cloud else None,
            curves=[
                variants.curve("Quality", "quality", swept), variants.curve("Cloud request rate", "cloud_rate", swept),
                variants.curve("Cloud layer-tokens", "cloud_layer_share", swept),
            ],
        ),
        Chart(
            name="sweep-time", title="Time over the threshold", x="threshold", y="mean latency, ms",
            note="Dashed: cloud only.",
            level=cloud["latency_mean_ms"].value if "latency_mean_ms" in cloud else None,
            curves=[variants.curve("Latency", "latency_mean_ms", swept)],
        ),
        Chart(
            name="sweep-data", title="Data over the threshold", x="threshold", y="bytes per answer",
            note="Both directions, frames without headers.", curves=[variants.curve("Data", "bytes", swept)],
        ),
    ]  # fmt: skip


COLUMNS = {
    "quality": ("quality", "{:.3f}"),
    "cloud_rate": ("cloud request rate", "{:.3f}"),
    "asking_rate": ("answers that ask the cloud", "{:.3f}"),
    "cloud_layer_share": ("cloud layer-tokens", "{:.3f}"),
    "bytes": ("bytes", "{:,.0f}"),
    "latency_mean_ms": ("ms", "{:.1f}"),
}


def sweep(report: ExperimentReport) -> ReportTable:
    """A row for each configuration, with the interval of its difference in quality."""
    rows = []
    for one in report.configurations:
        cells = [formatted(one.measures.get(name), form) for name, (_, form) in COLUMNS.items()]
        change = one.differences.get("quality")
        against = f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]" if change else ""
        rows.append([one.name, *cells, against])
    return ReportTable(
        title="Threshold sweep",
        heads=["configuration", *(title for title, _ in COLUMNS.values()), "quality minus cloud only's"],
        rows=rows,
        note="Means per answer. Cloud request rate: share of tokens for which the cloud was asked. Cloud layer-tokens: "
        "share of the whole model's. Differences are paired by question, with 95 % intervals.",
    )


def formatted(measure: Measure | None, form: str) -> str:
    """A value as text, or a dash where it was not measured."""
    return form.format(measure.value) if measure else "–"


def beside_paper(report: ExperimentReport) -> ReportTable:
    """The paper's quality and ours, collaborative and cloud only."""
    rows = [
        [f"paper, {one.dataset} ({one.task})", f"{one.collaborative:.3f}", f"{one.cloud_only:.3f}",
         f"{one.collaborative - one.cloud_only:+.3f}"]
        for one in paper.ACCURACY
    ]  # fmt: skip
    by_name = {one.name: one for one in report.configurations}
    cloud = by_name[CLOUD_ONLY.name].measures.get("quality")
    for name, one in by_name.items():
        mine = one.measures.get("quality")
        if cloud and mine and name.startswith("split "):
            difference = f"{mine.value - cloud.value:+.3f}"
            what = f"here, {report.workload.name}, {name}"
            rows.append([what, f"{mine.value:.3f}", f"{cloud.value:.3f}", difference])
    saved = ", ".join(f"{share:.2%} ({dataset})" for dataset, share in paper.OFFLOADED.items())
    return ReportTable(
        title="Beside the paper",
        heads=["", "collaborative", "cloud only", "difference"],
        rows=rows,
        note=f"Quality is {report.workload.metric.replace('_', ' ')} here. At the paper's threshold of 0.8 it "
        f"saves {saved} of the cloud's computation.",
    )


def findings(swept: Sequence[tuple[float, ConfigurationReport]], cloud: ConfigurationReport) -> list[str]:
    """The threshold with the least cloud work among those with a quality within WITHIN of cloud only's."""
    wanted = "quality", "cloud_layer_share", "cloud_rate"
    whole = cloud.measures.get("quality")
    measured = [(x, one) for x, one in swept if all(name in one.measures for name in wanted)]
    if whole is None or not measured:
        return []
    good = [(x, one) for x, one in measured if one.measures["quality"].value >= whole.value - WITHIN]
    if not good:
        return [f"At no threshold is quality within {100 * WITHIN:g} point of cloud only's"]
    x, best = min(good, key=lambda pair: pair[1].measures["cloud_layer_share"].value)
    share, rate, quality = (best.measures[name] for name in ("cloud_layer_share", "cloud_rate", "quality"))
    return [
        f"Threshold {x:g}: {1 - share.value:.1%} [{1 - share.high:.1%}, {1 - share.low:.1%}] of the cloud's "
        f"layer-tokens saved at quality {quality.value:.3f} (cloud only {whole.value:.3f}); the cloud was asked for "
        f"{rate.value:.1%} of tokens"
    ]


if __name__ == "__main__":
    sys.exit(run_program(main()))
