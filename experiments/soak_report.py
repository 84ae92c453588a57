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


class Stall(msgspec.Struct, frozen=True):
    """A time without text, and what the answer waited for longest."""

    at: float
    mode: str
    seconds: float
    waited_for: str
    longest_wait: float


class SoakReport(msgspec.Struct, kw_only=True):
    """`answers`: by their outcome; `seconds`: all times of answers by mode."""

    environment: Environment
    options: dict[str, Any]
    answers: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    seconds: dict[str, list[float]] = {}
    stalls: list[Stall] = []
    samples: list[Vitals] = []


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
    worst = max(report.stalls, key=lambda stall: stall.seconds, default=None)
    stalls = (
        "none" if worst is None else f"{len(report.stalls)}, the longest {worst.seconds:.1f} s ({worst.waited_for})"
    )
    outcomes = ", ".join(f"{number} {outcome}" for outcome, number in sorted(report.answers.items()))
    return Document(
        title="Soak",
        byline=[
            f"{report.options['clients']} clients, {report.options['minutes']:g} minutes",
            report.environment.created,
        ],
        summary=[
            Sentence("Answers", outcomes),
            Sentence(f"Stalls above {report.options['stall']:g} s", stalls),
            growth_sentence(report.samples),
        ],
        warnings=[f"{number} × {message}" for message, number in report.failures.most_common(10)],
        grids=[grid(report.samples, quantity, f"soak_{quantity}") for quantity in QUANTITIES],
        tables=[
            growth_table(report.samples),
            times(report),
            ReportTable(
                title="Stalls",
                note="Times without text, and what the answer waited for longest.",
                heads=["at, s", "mode", "seconds", "longest wait, s", "for"],
                rows=[
                    [f"{s.at:.0f}", s.mode, f"{s.seconds:.1f}", f"{s.longest_wait:.1f}", s.waited_for]
                    for s in sorted(report.stalls, key=lambda stall: -stall.seconds)
                ],
            ),
        ],
        environment=described(report.environment),
        command=command(report.options),
    )


def times(report: SoakReport) -> ReportTable:
    rows = [
        [mode, str(len(all_)), *(f"{np.quantile(all_, q):.2f}" for q in (0.5, 0.95, 1.0))]
        for mode, all_ in sorted(report.seconds.items())
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
