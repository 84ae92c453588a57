"""The report of a capacity: clients at a given speed, measured and by the model, for each system; tables and a plot."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import msgspec
from rich.console import Console

from common.protocol.prefix_hash import common_prefix
from experiments.capacity import model
from experiments.capacity.clients import CapacityPoint
from experiments.capacity.model import STREAMING, ClientWork
from experiments.network.tables import for_terminal
from experiments.report import document, html, markdown, panel_grid
from experiments.report.document import Document, ReportFiles
from experiments.report.line_plot import PlotLine, PlotPoint, class_of
from experiments.report.panel_grid import GridPanel, PanelGrid
from experiments.report.particulars import command, described
from experiments.report.schema import Environment, Measure, ReportTable
from experiments.report.words import Sentence

NAME = "capacity_report"
TITLES = {
    "cloud": "cloud alone",
    "ngram": "cloud with n-grams",
    "draft-model": "cloud with a draft model",
    "lossless": "edges, lossless",
    "gated": "edges, gated",
}
EDGES = ("lossless", "gated")
"""The systems whose clients draft."""
ENOUGH = 0.8
"""Of a lone client's tokens a second."""
BEYOND = 4
"""Times the most clients that were measured: for so many the model says how it goes on."""


class ClientsAt(msgspec.Struct, frozen=True):
    """The most clients with some speed each: on the measured line (None: more than were measured), by the model."""

    measured: float | None
    model: int

    def __str__(self) -> str:
        return f"{'more' if self.measured is None else f'{self.measured:.0f}'} / {self.model}"


class SystemResult(msgspec.Struct, frozen=True, kw_only=True):
    """One system: its points by increasing clients, and the model that was fitted to all of them but the last.

    `step_ms`, `each_ms`: of a step, and of each token in it; of the drafts in a cloud that speculates by itself nothing
    is known, so there of each client. `predicted`: tokens a second of one client, by the number of clients. `own`:
    clients with ENOUGH of their own lone client's speed; `equal`: with that share of the cloud alone's.
    """

    name: str
    points: list[CapacityPoint]
    step_ms: float
    each_ms: float
    predicted: dict[int, float]
    own: ClientsAt
    equal: ClientsAt

    @property
    def check(self) -> float:
        """Predicted over measured speed at the largest number of clients."""
        last = self.points[-1]
        return self.predicted[last.clients] / last.speed


class CapacityReport(msgspec.Struct, kw_only=True):
    """`draft_ms`: an edge's time for a token; `acceptance`: accepted over drafted tokens of the lossless answers."""

    environment: Environment
    options: dict[str, Any]
    draft_ms: float
    acceptance: float
    systems: list[SystemResult]


def acceptance(work: ClientWork) -> float:
    """Accepted over drafted tokens of recorded answers."""
    accepted = sum(common_prefix(one.draft, one.committed) for one in work.rounds)
    return accepted / max(1, sum(len(one.draft) for one in work.rounds))


def results(works: Mapping[str, ClientWork], points: Mapping[str, Sequence[CapacityPoint]]) -> list[SystemResult]:
    """Of all systems; the first one is the cloud alone, with which the others are compared."""
    level = ENOUGH * next(iter(points.values()))[0].speed
    return [_result(name, work if name in EDGES else STREAMING, points[name], level) for name, work in works.items()]


def _result(name: str, work: ClientWork, points: Sequence[CapacityPoint], equal: float) -> SystemResult:
    measured = {one.clients: one.speed for one in points}
    cost = model.fit(work, {one.clients: one.speed for one in points[:-1]})
    predict = cache(partial(model.speed, work, cost))

    def at(level: float) -> ClientsAt:
        return ClientsAt(model.between(level, measured), model.clients_at(level, predict))

    return SystemResult(
        name=name,
        points=list(points),
        step_ms=1e3 * cost.step,
        each_ms=1e3 * cost.each,
        predicted={clients: predict(clients) for clients in (*measured, BEYOND * max(measured))},
        own=at(ENOUGH * measured[1]),
        equal=at(equal),
    )


def write(report: CapacityReport, files: ReportFiles, console: Console) -> None:
    """Writes the report's files and the plot; prints the tables."""
    written = document_of(report)
    paths = document.write_files(files, report, markdown.render_document(written), html.render_document(written))
    paths += [panel_grid.write(grid, files.folder) for grid in written.grids]
    for table in written.tables:
        console.print(for_terminal(table))
    for path in paths:
        console.print(f"written: {path}")


def document_of(report: CapacityReport) -> Document:
    return Document(
        title="Clients of one cloud",
        byline=[report.environment.created],
        summary=list(sentences(report)),
        grids=[grid(report)],
        tables=[capacity_table(report), speed_table(report)],
        environment=described(report.environment),
        command=command(report.options),
    )


def sentences(report: CapacityReport) -> Iterator[Sentence]:
    yield Sentence("Edges", f"{report.draft_ms:.2f} ms a token, {report.acceptance:.2f} of them are accepted")
    for title, kind in (("their own lone client's", "own"), ("the cloud alone's lone client's", "equal")):
        found = [f"{TITLES[one.name]}: {getattr(one, kind)}" for one in report.systems]
        yield Sentence(f"Clients at {ENOUGH:.0%} of {title} speed", "measured / by the model", found)


def capacity_table(report: CapacityReport) -> ReportTable:
    alone = report.systems[0]
    return ReportTable(
        title="Clients that one cloud serves",
        note=f"At {ENOUGH:.0%} of the tokens a second of a lone client: of the same system, and of the cloud alone; "
        "measured / by the model. Ratio: by the model, to the cloud alone. A step takes a, and b for each token "
        "(for each client, where the cloud speculates by itself). "
        "Check: predicted over measured speed at the largest number of clients, to which the model was not fitted.",
        heads=[
            *("system", "alone, tokens/s", "clients at own speed", "at the cloud's speed", "ratio"),
            *("a, ms", "b, ms", "check", "other answers"),
        ],
        rows=[
            [
                TITLES[one.name],
                f"{one.points[0].speed:.1f}",
                str(one.own),
                str(one.equal),
                f"{one.equal.model / alone.equal.model:.2f}",
                f"{one.step_ms:.2f}",
                f"{one.each_ms:.2f}",
                f"{one.check:.2f}",
                others(one.points),
            ]
            for one in report.systems
        ],
    )


def others(points: Sequence[CapacityPoint]) -> str:
    """How many answers were not the recorded ones, or none at all, of how many."""
    answers: Counter[str] = sum((one.answers for one in points), Counter())
    return f"{answers.total() - answers['answered']} of {answers.total()}"


def speed_table(report: CapacityReport) -> ReportTable:
    counts = [*report.systems[0].predicted]
    return ReportTable(
        title="Tokens a second of one client",
        note="Measured / by the model. Busy: the largest share of their core that the clients took.",
        heads=["system", *(f"{clients} clients" for clients in counts), "busy"],
        rows=[
            [
                TITLES[one.name],
                *(_measured(one, clients) + f" / {one.predicted[clients]:.1f}" for clients in counts),
                f"{max(point.busy for point in one.points):.0%}",
            ]
            for one in report.systems
        ],
    )


def _measured(result: SystemResult, clients: int) -> str:
    found = [one.speed for one in result.points if one.clients == clients]
    return f"{found[0]:.1f}" if found else "–"


def grid(report: CapacityReport) -> PanelGrid:
    lines = []
    for number, one in enumerate(report.systems):
        points = [_point(one.name, point.clients, point.speed) for point in one.points]
        limits = [one.predicted[point.clients] for point in one.points]
        lines.append(PlotLine(TITLES[one.name], class_of(number), points, limits))
    note = "Dashed: the model."
    panels = [GridPanel(f"drafts at {report.draft_ms:.2g} ms a token", lines)]
    return PanelGrid("capacity", "Speed of one of many clients", note, "clients", "tokens a second of each", 1, panels)


def _point(name: str, clients: int, speed: float) -> PlotPoint:
    about = f"{TITLES[name]}, {clients} clients: {speed:.1f} tokens/s each"
    return PlotPoint(float(clients), Measure(speed, speed, speed), about)
