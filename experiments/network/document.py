"""Turns the report of a network sweep into the common document: summary, plots over the round trip, and tables."""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.network import tables
from experiments.network.answer_modes import ANSWER_MODES, CLOUD_ONLY
from experiments.network.passes import SweepPlan
from experiments.network.schema import ModeRow, NetworkReport
from experiments.report.bar_plots import Spread
from experiments.report.document import Document, byline
from experiments.report.line_plot import PlotLine, PlotPoint, class_of
from experiments.report.panel_grid import GridPanel, PanelGrid
from experiments.report.particulars import command, described, without_secrets
from experiments.report.schema import Measure
from experiments.report.words import Sentence, counted


@dataclass(frozen=True)
class ModePlot:
    """A measure of each mode over the round trip; `without`: modes that are left out; `level`: a value to compare with.

    `limit`: the highest possible value, null where it is unknown.
    """

    name: str
    title: str
    unit: str
    note: str
    value: Callable[[ModeRow], Spread]
    limit: Callable[[ModeRow], float | None] = lambda row: None
    without: tuple[str, ...] = ()
    level: PlotLine | None = None


def exact(value: float) -> Measure:
    """Without an interval."""
    return Measure(value, value, value)


PLOTS = (
    ModePlot(
        name="speed",
        title="Speed over cloud only",
        unit="times as fast",
        note="Bars: 95 % intervals (bootstrap over questions). Dashed: the highest speed that acceptance, verify time "
        "and draft time allow.",
        value=lambda row: row.over_cloud_only,
        limit=lambda row: row.allowed,
        without=(CLOUD_ONLY.name, "edge"),
        level=PlotLine("cloud only", "end", [PlotPoint(exact(1.0), exact(1.0), "as fast as cloud only")]),
    ),
    ModePlot(
        name="bytes",
        title="Bytes of one answer on the network",
        unit="kB",
        note="Both directions, headers included.",
        value=lambda row: exact((row.bytes_up + row.bytes_down) / 1000),
    ),
    ModePlot(
        name="steps",
        title="Work of the cloud",
        unit="engine steps per token",
        note="Engine steps of the cloud over tokens of the answers.",
        value=lambda row: exact(row.steps_per_token),
    ),
)


def of_sweep(report: NetworkReport) -> Document:
    plan = report.plan
    return Document(
        title="Answer modes over networks",
        byline=byline(plan.data or "demo, held out", plan.seed, report.environment),
        summary=[
            Sentence("Exactness", f"{tables.conclusion(report)}."),
            Sentence("Asked", f"{report.passes_done} of {counted(report.passes_planned, 'pass', 'passes')}."),
            *(
                [Sentence("Speed over cloud only", "lowest and highest over all cells", extremes(report))]
                if report.rows
                else []
            ),
            *(
                [Sentence("An edge drafter is", "lossless, by policy", tables.verdicts(report))]
                if report.instead
                else []
            ),
        ],
        grids=[grid(report, plot) for plot in PLOTS],
        tables=[
            *([tables.instead(report)] if report.instead else []),
            tables.ratios(report),
            tables.details(report),
        ],
        environment=described(report.environment),
        command=command(options(plan)),
    )


def extremes(report: NetworkReport) -> list[str]:
    """For each mode the lowest and the highest ratio of speeds, and the cells that have them."""
    found = []
    for name in tables.other_modes(report):
        rows = sorted((row for row in report.rows if row.way == name), key=lambda row: row.over_cloud_only.value)
        ends = " to ".join(f"{row.over_cloud_only.value:.2f} ({row.cell.title})" for row in (rows[0], rows[-1]))
        found.append(f"{ANSWER_MODES[name].title}: {ends}")
    return found


def panel_title(clients: int, uplink: float) -> str:
    return f"{counted(clients, 'client')}, {uplink:g} Mbit/s"


def grid(report: NetworkReport, plot: ModePlot) -> PanelGrid:
    """A row of panels for each bandwidth, a column for each number of clients; cells without results are left out."""
    panels = []
    for uplink in report.plan.uplinks:
        for clients in report.plan.clients:
            rows = [row for row in report.rows if (row.cell.uplink, row.cell.clients) == (uplink, clients)]
            if rows:
                panels.append(GridPanel(panel_title(clients, uplink), lines(report.plan, plot, rows)))
    columns = len(report.plan.clients)
    return PanelGrid(plot.name, plot.title, plot.note, "round trip, ms", plot.unit, columns, panels)


def lines(plan: SweepPlan, plot: ModePlot, rows: list[ModeRow]) -> list[PlotLine]:
    """A line for each mode, in the same colour in every plot."""
    found = []
    for n, name in enumerate(plan.ways):
        own = [row for row in rows if row.way == name and name not in plot.without]
        if own:
            limits = [limit for row in own if (limit := plot.limit(row)) is not None]
            points = [point(plot, row) for row in own]
            complete = len(limits) == len(own)
            found.append(PlotLine(ANSWER_MODES[name].title, class_of(n), points, limits if complete else ()))
    return [*found, *([plot.level] if plot.level else [])]


def point(plot: ModePlot, row: ModeRow) -> PlotPoint:
    value, title = plot.value(row), ANSWER_MODES[row.way].title
    about = f"{title}, round trip {row.cell.round_trip:g} ms: {value.value:.3g} {plot.unit}"
    return PlotPoint(float(row.cell.round_trip), value, about)


def options(plan: SweepPlan) -> dict[str, object]:
    """The command-line options that measure the same again."""
    return {
        "program": "-m experiments.network_sweep",
        "round_trips": listed(plan.round_trips),
        "uplinks": listed(plan.uplinks),
        "clients": listed(plan.clients),
        "ways": ",".join(plan.ways),
        "prompts": plan.prompts,
        "repeats": plan.repeats,
        "max_tokens": plan.max_tokens,
        "seed": plan.seed,
        "pinned": plan.pinned,
        "data": plan.data,
        "config": plan.config,
        "set": without_secrets(plan.settings),
    }


def listed(values: list[float] | list[int]) -> str:
    return ",".join(f"{value:g}" for value in values)
