"""Measures the bytes of the layer split against those of a naive split.

python -m experiments.communication_overhead [--thresholds 0.5,0.7,...] [--questions 60] [--output DIR]

"Every hidden state in fp32" can be read in several ways that differ by orders of magnitude; each has a column with its
formula. What the layer split sends is counted twice: by its answers (frames) and by the network (with headers).
"""

import sys
from collections.abc import Sequence
from functools import partial

from cli import terminal
from cli.args import run_program
from experiments.harness import experiment
from experiments.harness.options import numbers
from experiments.harness.trials import ExperimentPlan, TrialResult
from experiments.report.schema import Chart, ExperimentReport, ReportTable
from experiments.setup.ablations import CLOUD_ONLY
from experiments.split import formulas, paper, variants
from experiments.split.formulas import READINGS, SplitShape

NAME = "communication_overhead"
QUESTIONS, REPEATS, BLOCK = 60, 1, 4
THRESHOLDS = "0.5,0.7,0.8,0.9,1.01"


async def main() -> None:
    parser = variants.parser(__doc__.partition("\n")[0], QUESTIONS, REPEATS, f"logs/{NAME}")
    parser.add_argument(
        "--thresholds", default=THRESHOLDS, metavar="NUMBERS", help="thresholds of the exits (default %(default)s)"
    )
    args, console = parser.parse_args(), terminal.console()
    wanted = sorted(numbers(args.thresholds, "--thresholds"))
    base = experiment.base_config(args, variants.SETTINGS)
    chosen = [variants.NAIVE, *map(variants.split, wanted), CLOUD_ONLY]
    add = partial(finish, wanted, variants.shape_of(base))
    kind = variants.kind(NAME, "What a split model sends", base, variants.NAIVE, add, block=BLOCK)
    await experiment.run(args, chosen, base, console, kind)


def finish(
    thresholds: Sequence[float],
    shape: SplitShape,
    report: ExperimentReport,
    plan: ExperimentPlan,
    entries: Sequence[TrialResult],
) -> None:
    """Adds the bytes by each reading, the paper's figures, and the curves over the threshold."""
    report.tables += [readings(report, shape), beside_paper(report)]
    report.findings += [*findings(report, thresholds), papers_reading()]
    names = [f"split {threshold:g}" for threshold in thresholds]
    by_name = {one.name: one for one in report.configurations}
    swept = [(x, by_name[name]) for x, name in zip(thresholds, names, strict=True)]
    report.charts += [
        Chart(
            name="reduction", title="Data saved against a naive split", x="threshold", y="share saved", level=0.9915,
            note="By each reading of the naive split. Dashed: 99.15 %, which the CE-CoLLM paper reports for Alpaca. "
            "Above a threshold of 1 no exit is ever taken.",
            curves=[variants.curve(title, f"reduction_{name}", swept) for name, (title, _, _) in READINGS.items()],
        ),
        Chart(
            name="rate", title="Cloud request rate", x="threshold", y="share", level=paper.REQUEST_RATE,
            note="Share of tokens, and of answers, for which the cloud was asked. Dashed: the paper's "
            f"{paper.REQUEST_RATE:.2%} of Alpaca's tokens.",
            curves=[
 variants.curve("tokens", "cloud_rate", swept), variants.curve("answers", "asking_rate", swept),
 ],
        ),
    ]  # fmt: skip


def readings(report: ExperimentReport, shape: SplitShape) -> ReportTable:
    """The bytes per answer of each configuration, and of each reading of the naive split."""
    rows = []
    for one in report.configurations:
        m = one.measures
        sent = [f"{m[name].value:,.0f}" if name in m else "–" for name in ("bytes", "network_bytes")]
        of = [f"{m[name].value:,.0f}" if name in m else "–" for name in READINGS]
        saved = [f"{m[f'reduction_{name}'].value:.2%}" if f"reduction_{name}" in m else "–" for name in READINGS]
        rows.append([one.name, *sent, *(part for pair in zip(of, saved, strict=True) for part in pair)])
    short = [title.partition(")")[0] + ")" for title, _, _ in READINGS.values()]
    heads = [
        "configuration",
        "frames",
        "with headers",
        *(part for name in short for part in (f"naive {name}", f"saved {name}")),
    ]
    formulas = "; ".join(f"{title}: {formula}" for title, formula, _ in READINGS.values())
    return ReportTable(
        title="Bytes per answer against each reading of the naive split",
        heads=heads,
        rows=rows,
        note=f"Both directions. {formulas}. P: tokens of the prompt, T: of the answer, H = {shape.hidden} values a "
        f"state, N = {shape.layers} layers; 4 bytes a value. naive_split was really run, by reading (b).",
    )


def beside_paper(report: ExperimentReport) -> ReportTable:
    """The paper's columns: bytes of both, the share saved, cloud request rate."""
    rows = [
        [f"paper, {one.dataset}", f"{one.naive:g} MB", f"{one.ours:g} MB", f"{one.reduction:.2%}",
         f"{paper.REQUEST_RATE:.2%}" if one.dataset == "Alpaca" else "–"]
        for one in paper.DATA
    ]  # fmt: skip
    for one in report.configurations:
        m = one.measures
        if one.name.startswith("split ") and "reduction_naive_context" in m:
            naive, ours = m["naive_context"].value, m["bytes"].value
            saved, rate = m["reduction_naive_context"].value, m["cloud_rate"].value
            rows.append(
                [f"here, {one.name}", f"{naive / 1e6:.4f} MB", f"{ours / 1e6:.4f} MB", f"{saved:.2%}", f"{rate:.2%}"]
            )
    return ReportTable(
        title="Beside the paper",
        heads=["", "naive", "layer split", "saved", "cloud request rate"],
        rows=rows,
        note="Data of one answer; naive by reading (b), which fits the paper's figures. The paper's model has "
        f"states of {paper.HIDDEN} values and answers of about 100 tokens.",
    )


def findings(report: ExperimentReport, thresholds: Sequence[float]) -> list[str]:
    """For each threshold, the share of the data saved by each reading, and the cloud request rate."""
    sentences = []
    by_name = {one.name: one.measures for one in report.configurations}
    for threshold in thresholds:
        m = by_name[f"split {threshold:g}"]
        if all(f"reduction_{name}" in m for name in READINGS):
            saved = ", ".join(
                f"{m[f'reduction_{name}'].value:.2%} by {title.partition(')')[0]})"
                for name, (title, _, _) in READINGS.items()
            )
            rate = m["cloud_rate"].value
            sentences.append(
                f"threshold {threshold:g}: {saved} of the data saved; the cloud was asked for {rate:.1%} of tokens"
            )
    return sentences


def papers_reading() -> str:
    """Computes which reading fits the paper's figure for Alpaca."""
    model, prompt, tokens = SplitShape(paper.HIDDEN, paper.LAYERS, 0), 20, 100
    naive = formulas.every_token(model, prompt, tokens)
    ours = formulas.once(model, prompt, tokens) / 2
    return (
        f"Reading (b) is the paper's: with P = {prompt}, T = {tokens}, H = {model.hidden} it gives {naive / 1e6:.0f} "
        f"MB, and each position once in fp16 {ours / 1e6:.2f} MB, {formulas.reduction(naive, ours):.2%} less; "
        f"the paper has {paper.DATA[0].naive:g} MB, {paper.DATA[0].ours:g} MB and {paper.DATA[0].reduction:.2%}"
    )


if __name__ == "__main__":
    sys.exit(run_program(main()))
