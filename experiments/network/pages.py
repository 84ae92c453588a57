"""A network sweep's report as one HTML page and as Markdown. Knows only the report, and the tables made of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from markupsafe import Markup
from rich.table import Table

from experiments.network import view
from experiments.network.report import ModeRow, NetworkReport
from experiments.network.ways import CLOUD_ONLY, WAYS
from experiments.report import html, markdown
from experiments.report.bar_plots import Spread
from experiments.report.line_plot import PlotLine, PlotPoint, class_of, over_number
from experiments.report.particulars import described, short
from experiments.report.schema import Measure

TITLE = "Ways of answering over networks"
WIDTH = 420.0
"""Of a panel, in CSS pixels."""


@dataclass(frozen=True)
class Plot:
    """One measure over the round trip; `without`: ways that it makes no sense of; `level`: the base."""

    title: str
    unit: str
    of: Callable[[ModeRow], Spread]
    without: tuple[str, ...] = ()
    level: PlotLine | None = None


def exact(value: float) -> Measure:
    return Measure(value, value, value)


PLOTS = (
    Plot("Speed over cloud only", "times", lambda row: row.over_cloud_only, (CLOUD_ONLY.name, "edge"),
         PlotLine("cloud only", "end", [PlotPoint(exact(1.0), exact(1.0), "as fast as cloud only")])),
    Plot("Bytes of one answer on the network", "kB", lambda row: exact((row.bytes_up + row.bytes_down) / 1000)),
    Plot("Work of the cloud", "engine steps per token", lambda row: exact(row.steps_per_token)),
)  # fmt: skip


def to_html(report: NetworkReport) -> str:
    return html.page(
        "network.html.jinja",
        title=TITLE,
        report=report,
        conclusion=view.conclusion(report),
        lines=[(WAYS[name].title, class_of(n)) for n, name in enumerate(report.plan.ways)],
        plots=[(plot, list(panels(report, plot))) for plot in PLOTS],
        tables=[(str(table.title), *cells(table)) for table in tables(report)],
        environment=described(report.environment),
        commit=short(report.environment.git_commit or ""),
    )


def to_markdown(report: NetworkReport) -> str:
    parts = [f"# {TITLE}", f"{view.conclusion(report)}."]
    for table in tables(report):
        heads, rows = cells(table)
        escaped = [[markdown.escaped(each) for each in row] for row in (heads, *rows)]
        parts += [f"## {markdown.escaped(str(table.title))}", markdown.table(escaped[0], escaped[1:])]
    where = [[markdown.escaped(each) for each in item] for item in described(report.environment).items()]
    return "\n\n".join([*parts, "## Environment", markdown.table(["", ""], where, (0, 1))]) + "\n"


def tables(report: NetworkReport) -> list[Table]:
    return [view.ratios(report), view.details(report)]


def cells(table: Table) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table for the terminal."""
    heads = [" ".join(str(column.header).split()) for column in table.columns]
    return heads, [list(map(str, row)) for row in zip(*(column.cells for column in table.columns), strict=True)]


def panels(report: NetworkReport, plot: Plot) -> Iterator[tuple[str, Markup]]:
    """One for each bandwidth and number of clients that has been measured, all of a plot over the same round trips."""
    for uplink in report.plan.uplinks:
        for clients in report.plan.clients:
            here = [row for row in report.rows if (row.cell.uplink, row.cell.clients) == (uplink, clients)]
            lines = [
                *(line for line in lines_of(report, plot, here) if line.places),
                *([plot.level] if plot.level else []),
            ]
            if here:
                title = f"{clients} client{'s' if clients > 1 else ''}, {uplink:g} Mbit/s"
                yield title, over_number(lines, "round trip, ms →", f"↑ {plot.unit}", WIDTH, f"{plot.title}: {title}")


def lines_of(report: NetworkReport, plot: Plot, rows: list[ModeRow]) -> Iterator[PlotLine]:
    for n, way in enumerate(report.plan.ways):
        if way not in plot.without:
            yield PlotLine(WAYS[way].title, class_of(n), [place(plot, row) for row in rows if row.way == way])


def place(plot: Plot, row: ModeRow) -> PlotPoint:
    spread = plot.of(row)
    about = f"{WAYS[row.way].title}, round trip {row.cell.round_trip:g} ms: {spread.value:.3g} {plot.unit}"
    return PlotPoint(float(row.cell.round_trip), spread, about)
