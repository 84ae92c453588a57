"""Compares measures of an exit's confidence: tokens that remain the whole model's, at equal cloud rates.

    python -m models.exits.record --output exits.npz        # or of another model, with --model and --data
    python -m experiments.split.exit_confidence exits.npz [--output DIR]

Each exit alone, where a measure's scale plays no part, and all exits with one threshold, as the edge takes them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct
from rich.console import Console
from rich.table import Table

from calibration.split import records
from calibration.split.records import ExitRecords, RecordedModel
from cli import terminal
from cli.args import plain_parser, run_sync_program
from experiments.harness.environment import environment
from experiments.harness.options import OUTPUT_HELP
from experiments.harness.statistics import draws, each_once, interval
from experiments.report import document, html, markdown, panel_grid
from experiments.report.document import Document, ReportFiles
from experiments.report.line_plot import PlotLine, PlotPoint, class_of
from experiments.report.panel_grid import GridPanel, PanelGrid
from experiments.report.particulars import command, described
from experiments.report.schema import Difference, Environment, ReportTable
from experiments.report.schema import Measure as Spread
from experiments.report.words import Sentence
from experiments.split import exit_curves
from experiments.split.exit_curves import RATES, CurvePoints
from experiments.split.exit_measures import MEASURES, NEVER

NAME = "exit_confidence"
BASE = "max_prob"
"""What the edge uses."""
PER = 1000
"""Tokens for which differing ones are counted in tables."""


class MeasuredConfidence(Struct, frozen=True, kw_only=True):
    """One measure at some exits: the share of tokens that differ, as a mean over all cloud rates and at each of RATES.

    `to_base`: the area minus that of BASE, paired by question; None for BASE itself.
    """

    exits: str
    measure: str
    area: Spread
    to_base: Difference | None
    at: list[Spread]


class ConfidenceReport(Struct, frozen=True, kw_only=True):
    environment: Environment
    options: dict[str, Any]
    model: RecordedModel
    questions: int
    tokens: int
    agreement: list[float]
    """Of each exit: the share of tokens that are the whole model's."""
    rates: list[float]
    measured: list[MeasuredConfidence]


class Sampled(NamedTuple):
    """A curve over every question once, and over samples of the questions with replacement."""

    once: CurvePoints
    samples: CurvePoints


def compare(model: RecordedModel, found: ExitRecords, options: dict[str, Any]) -> ConfidenceReport:
    drawn = each_once(found.questions), draws(found.questions)
    scores = {name: measure(found, model.vocab_size) for name, measure in MEASURES.items()}
    parts = [(f"exit {layers}", slice(at, at + 1)) for at, layers in enumerate(model.exits)]
    if len(parts) > 1:
        parts.append(("all exits", slice(None)))
    measured = []
    for part, rows in parts:
        curves = {
            name: exit_curves.curve(each[rows], found.agrees[rows], found.question)
            for name, each in scores.items()
            if each[rows].max() > NEVER
        }
        sampled = {name: Sampled(*map(each.points, drawn)) for name, each in curves.items()}
        measured += [judge(part, name, each, sampled[BASE]) for name, each in sampled.items()]
    return ConfidenceReport(
        environment=environment(),
        options=options,
        model=model,
        questions=found.questions,
        tokens=len(found.right),
        agreement=found.agrees.mean(-1).tolist(),
        rates=list(RATES),
        measured=measured,
    )


def judge(part: str, name: str, one: Sampled, base: Sampled) -> MeasuredConfidence:
    difference = None
    if name != BASE:
        low, high = interval(one.samples.area - base.samples.area)
        value = float((one.once.area - base.once.area)[0])
        difference = Difference(value, low, high, clear=not low <= 0 <= high)
    area = Spread(float(one.once.area[0]), *interval(one.samples.area))
    once, samples = one.once.at(RATES)[0].tolist(), one.samples.at(RATES).T
    at = [Spread(value, *interval(each)) for value, each in zip(once, samples, strict=True)]
    return MeasuredConfidence(exits=part, measure=name, area=area, to_base=difference, at=at)


def document_of(report: ConfidenceReport) -> Document:
    model = report.model
    answers = "the model's own answers" if model.own_answers else "given answers"
    shares = [f"exit {layers}: {share:.4f}" for layers, share in zip(model.exits, report.agreement, strict=True)]
    return Document(
        title="Measures of an exit's confidence, at equal cloud rates",
        byline=[model.model, report.environment.created],
        summary=[
            Sentence("Recorded", f"{report.tokens} tokens of {answers} to {report.questions} questions ({model.data})"),
            Sentence("Same token as the whole model", ", ".join(shares)),
            *map(verdict, parts_of(report)),
        ],
        grids=[plot(report)],
        tables=[areas(report), rates(report)],
        environment=described(report.environment),
        command=command(report.options),
    )


def parts_of(report: ConfidenceReport) -> list[list[MeasuredConfidence]]:
    """The measures at each exit, and at all of them."""
    names = dict.fromkeys(one.exits for one in report.measured)
    return [[one for one in report.measured if one.exits == name] for name in names]


def verdict(part: Sequence[MeasuredConfidence]) -> Sentence:
    best = min(part, key=lambda one: one.area.value)
    if best.to_base is None:
        text = f"{BASE} is the best"
    else:
        text = (
            f"{best.measure} is the best; " + ("clearly" if best.to_base.clear else "not clearly") + f" before {BASE}"
        )
    return Sentence(part[0].exits, text)


def areas(report: ConfidenceReport) -> ReportTable:
    rows = [
        [f"{one.exits}, {one.measure}", per(one.area), per(one.to_base) if one.to_base else "–",
         ("clear" if one.to_base.clear else "not clear") if one.to_base else ""]
        for one in report.measured
    ]  # fmt: skip
    return ReportTable(
        title=f"Tokens of {PER} that differ from the whole model's, as a mean over all cloud rates",
        heads=["exits, measure", "differ", f"minus {BASE}", ""],
        rows=rows,
        note="Less is better. 95 % intervals by a bootstrap over questions; clear: the difference's does not hold 0.",
    )


def rates(report: ConfidenceReport) -> ReportTable:
    return ReportTable(
        title=f"Tokens of {PER} that differ, at equal cloud rates",
        heads=["exits, measure", *(f"{rate:.1%}" for rate in report.rates)],
        rows=[[f"{one.exits}, {one.measure}", *(f"{PER * at.value:.2f}" for at in one.at)] for one in report.measured],
        note="Between two thresholds the curve is a straight line. At 0 % the exits give every token.",
    )


def per(found: Spread | Difference) -> str:
    return f"{PER * found.value:.3f} [{PER * found.low:.3f}, {PER * found.high:.3f}]"


def plot(report: ConfidenceReport) -> PanelGrid:
    order = list(MEASURES)
    panels = [
        GridPanel(part[0].exits, [line(one, report.rates, class_of(order.index(one.measure))) for one in part])
        for part in parts_of(report)
    ]
    note = "Tokens that are the whole model's. 95 % intervals over questions."
    return PanelGrid(NAME, "Agreement over cloud rate", note, "cloud rate, %", "agreement", 3, panels)


def line(one: MeasuredConfidence, at: Sequence[float], class_: str) -> PlotLine:
    points = []
    for rate, differ in zip(at, one.at, strict=True):
        agree = Spread(1 - differ.value, 1 - differ.high, 1 - differ.low)
        about = f"{one.exits}, {one.measure}, cloud rate {rate:.1%}: {agree.value:.4f}"
        points.append(PlotPoint(round(100 * rate, 3), agree, about))
    return PlotLine(one.measure, class_, points)


def show(report: ConfidenceReport, console: Console) -> None:
    for each in (areas(report), rates(report)):
        table = Table(*each.heads, title=each.title, title_justify="left", caption=each.note, caption_justify="left")
        for row in each.rows:
            table.add_row(*row)
        console.print(table)
    for sentence in map(verdict, parts_of(report)):
        console.print(str(sentence))


def run(recording: Path, files: ReportFiles, options: dict[str, Any]) -> None:
    console = terminal.console()
    report = compare(*records.read(recording), options)
    written = document_of(report)
    show(report, console)
    pages = markdown.render_document(written), html.render_document(written)
    paths = document.write_files(files, report, *pages)
    for path in [*paths, *(panel_grid.write(grid, files.folder) for grid in written.grids)]:
        console.print(f"written: {path}")


def main() -> int:
    parser = plain_parser(__doc__.partition("\n")[0])
    parser.add_argument("recording", type=Path, metavar="FILE.npz", help="what python -m models.exits.record wrote")
    parser.add_argument("--output", default=f"logs/{NAME}", help=OUTPUT_HELP)
    args = parser.parse_args()
    options = {"program": f"-m experiments.split.{NAME} {args.recording}", "output": args.output}
    return run_sync_program(lambda: run(args.recording, ReportFiles.at(args.output, "report"), options))


if __name__ == "__main__":
    sys.exit(main())
