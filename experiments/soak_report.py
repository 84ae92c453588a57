"""The report of a soak: samples of the servers, stalls, times of answers; as a document with plots."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from experiments.counters.vitals import Vitals
from experiments.report import document, html, markdown, panel_grid
from experiments.report.document import Document, ReportFiles
from experiments.report.line_plot import PlotLine, PlotPoint, class_of
from experiments.report.panel_grid import GridPanel, PanelGrid
from experiments.report.particulars import command, described
from experiments.report.schema import Environment, Measure, ReportTable
from experiments.report.words import Sentence

NAME = "soak_report"
SHOWN = 40
"""Points of a line in a plot."""
QUANTITIES = {"memory": "MiB", "files": "open files", "threads": "threads"}


SLOW = 5.0
"""An answer is slow that takes so many times its mode's median."""


class AnswerTime(msgspec.Struct, frozen=True, array_like=True):
    """A whole answer: seconds of the run at its end, its own, the longest without text, and what it waited for."""

    at: float
    mode: str
    seconds: float
    gap: float
    waited_for: str
    longest_wait: float


class SoakReport(msgspec.Struct, kw_only=True):
    """`answers`: by their outcome; `times`: of all answers that came whole."""

    environment: Environment
    options: dict[str, Any]
    answers: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    times: list[AnswerTime] = []
    samples: list[Vitals] = []

    def by_mode(self) -> dict[str, list[AnswerTime]]:
        return {mode: [one for one in self.times if one.mode == mode] for mode in sorted({o.mode for o in self.times})}

    def stalls(self) -> list[AnswerTime]:
        """The longest first."""
        found = [one for one in self.times if one.gap >= self.options["stall"]]
        return sorted(found, key=lambda one: -one.gap)

    def slow(self) -> list[AnswerTime]:
        """The slowest first."""
        found = list[AnswerTime]()
        for own in self.by_mode().values():
            median = float(np.median([one.seconds for one in own]))
            found += [one for one in own if one.seconds > SLOW * median]
        return sorted(found, key=lambda one: -one.seconds)


def growth(samples: Sequence[Vitals], quantity: str) -> tuple[float, float]:
    """The mean over the last two thirds of the time, and its growth in an hour."""
    settled = samples[len(samples) // 3 :]
    values = np.array([getattr(one, quantity) for one in settled], float)
    hours = np.array([one.seconds for one in settled]) / 3600
    slope = float(np.polyfit(hours, values, 1)[0]) if len(settled) > 2 else 0.0
    return float(values.mean()), slope


def write(report: SoakReport, files: ReportFiles) -> Document:
    """Writes the report's files."""
    written = document_of(report)
    files.folder.mkdir(parents=True, exist_ok=True)
    for grid in written.grids:
        panel_grid.write(grid, files.folder)
    pages = markdown.render_document(written), html.render_document(written)
    document.write_files(files, report, *pages)
    return written


def document_of(report: SoakReport) -> Document:
    stalls, slow = report.stalls(), report.slow()
    outcomes = ", ".join(f"{number} {outcome}" for outcome, number in sorted(report.answers.items()))
    return Document(
        title="Soak",
        byline=[
            f"{report.options['clients']} clients, {report.options['minutes']:g} minutes",
            report.environment.created,
        ],
        summary=[
            Sentence("Answers", outcomes),
            Sentence(f"Stalls above {report.options['stall']:g} s", counted(stalls, stalls[0].gap if stalls else 0)),
            Sentence(f"Answers above {SLOW:g} × the median", counted(slow, slow[0].seconds if slow else 0)),
            growth_sentence(report.samples),
        ],
        warnings=[f"{number} × {message}" for message, number in report.failures.most_common(10)],
        grids=[grid(report.samples, quantity, f"soak_{quantity}") for quantity in QUANTITIES],
        tables=[
            growth_table(report.samples),
            times(report),
            waits("Stalls", "Answers with a long time without text, and what each waited for longest.", stalls),
            waits("Slow answers", f"Above {SLOW:g} times the median of their mode.", slow),
        ],
        environment=described(report.environment),
        command=command(report.options),
    )


def counted(found: Sequence[AnswerTime], seconds: float) -> str:
    return f"{len(found)}, the longest {seconds:.1f} s ({found[0].waited_for})" if found else "none"


def waits(title: str, note: str, found: Sequence[AnswerTime]) -> ReportTable:
    return ReportTable(
        title=title,
        note=note,
        heads=["at, s", "mode", "seconds", "without text, s", "longest wait, s", "for"],
        rows=[
            [f"{one.at:.0f}", one.mode, *(f"{s:.1f}" for s in (one.seconds, one.gap, one.longest_wait)), one.waited_for]
            for one in found
        ],
    )


def times(report: SoakReport) -> ReportTable:
    rows = [
        [mode, str(len(own)), *(f"{np.quantile([one.seconds for one in own], q):.2f}" for q in (0.5, 0.95, 1.0))]
        for mode, own in report.by_mode().items()
    ]
    return ReportTable(
        title="Answers", note="Seconds.", heads=["mode", "answers", "median", "95th percentile", "maximum"], rows=rows
    )


def growth_sentence(samples: Sequence[Vitals]) -> Sentence:
    return Sentence("Growth", "in an hour", [f"{row[0]}: {', '.join(row[1:])}" for row in growth_rows(samples)])


def growth_table(samples: Sequence[Vitals]) -> ReportTable:
    return ReportTable(
        title="Growth",
        note="Mean of the last two thirds of the time, and growth in an hour.",
        heads=["place", *QUANTITIES.values()],
        rows=growth_rows(samples),
    )


def places(samples: Sequence[Vitals]) -> dict[str, list[Vitals]]:
    found: dict[str, list[Vitals]] = {}
    for one in samples:
        found.setdefault(one.place, []).append(one)
    return found


def growth_rows(samples: Sequence[Vitals]) -> list[list[str]]:
    rows = []
    for place, own in places(samples).items():
        cells = [growth(own, quantity) for quantity in QUANTITIES]
        rows.append([place, *(f"{mean:.0f} ({slope:+.1f})" for mean, slope in cells)])
    return rows


def grid(samples: Sequence[Vitals], quantity: str, name: str) -> PanelGrid:
    panels: list[GridPanel] = []
    for place, own in places(samples).items():
        points = [point(one, quantity) for one in own[:: max(1, len(own) // SHOWN)]]
        panels.append(GridPanel(place, [PlotLine(place, class_of(len(panels)), points)]))
    unit = QUANTITIES[quantity]
    return PanelGrid(name, quantity.capitalize(), "", "minutes", unit, 2, panels)


def point(one: Vitals, quantity: str) -> PlotPoint:
    value = float(getattr(one, quantity))
    about = f"{one.place}, {one.seconds / 60:.1f} minutes: {value:g}"
    return PlotPoint(round(one.seconds / 60, 1), Measure(value, value, value), about)
