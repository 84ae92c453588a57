"""A network sweep's report as tables and plots. Knows only the report."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

from experiments.network import plots
from experiments.network.passes import NetworkCell
from experiments.network.plots import SweepLine, SweepPanel
from experiments.network.report import ModeRow, NetworkReport
from experiments.network.ways import CLOUD_ONLY, WAYS

NETWORK = ("round\ntrip", "Mbit\n/s", "clients")
SHOWN = "each figure: measured / at best, as acceptance, verify and draft cost allow"


def brief(report: NetworkReport) -> Table:
    """The speed of each way over cloud only, and nothing else, so that a terminal has room for it."""
    ways = [name for name in report.plan.ways if name != CLOUD_ONLY.name]
    made = Table(title="Speed over cloud only", title_justify="left", box=SIMPLE, padding=0)
    for name in ("ms", "Mbit\n/s", "at\nonce", *(way.replace("-", "\n") for way in ways)):
        made.add_column(name, justify="right")
    found = {(row.cell, row.way): row.over_cloud_only.value for row in report.rows}
    for cell in measured_cells(report):
        made.add_row(
            f"{cell.round_trip:g}", f"{cell.uplink:g}", f"{cell.clients}", *(f"{found[cell, way]:.2f}" for way in ways)
        )
    return made


def ratios(report: NetworkReport) -> Table:
    """A line for each cell: the speed of each way over cloud only, and what parts are worth."""
    others = [name for name in report.plan.ways if name != CLOUD_ONLY.name]
    parts = list(dict.fromkeys(worth.part for worth in report.worth))
    made = Table(title=f"Speed over cloud only; {SHOWN}", title_justify="left")
    for name in (*NETWORK, "cloud only,\ntokens/s", *(WAYS[name].title for name in others)):
        made.add_column(name, justify="right")
    for part in parts:
        made.add_column(f"worth of\n{part}", justify="right")
    made.add_column("differences", justify="right")
    found = {(row.cell, row.way): row for row in report.rows}
    worth = {(w.cell, w.part): f"{w.ratio.value:.2f}" for w in report.worth}
    for cell in measured_cells(report):
        rows = [found[cell, name] for name in others]
        made.add_row(
            *network(cell),
            f"{found[cell, CLOUD_ONLY.name].speed:.0f}",
            *map(ratio, rows),
            *(worth.get((cell, part), "-") for part in parts),
            str(sum(row.differences for row in rows if row.lossless)),
        )
    return made


def details(report: NetworkReport) -> Table:
    """A line for each way in each cell, with all that was measured."""
    made = Table(title="Each way by itself; bytes: of one answer, on the network", title_justify="left")
    made.add_column("way", no_wrap=True)
    timed = "tokens/s", "first\nms", "gap\np50", "gap\np95", "longest\ngap"
    worked = "bytes\nup", "bytes\ndown", "steps/\ntoken", "computed/\ntoken", "tokens/\nround", "thrown\naway", "..edge"
    for name in (
        *NETWORK,
        "tokens",
        *timed,
        *worked,
        "over\ncloud",
        "95 % of\nsuch",
        "typical\nquestion",
        "at\nbest",
        "differ",
    ):
        made.add_column(name, justify="right", no_wrap=True)
    last = None
    for row in report.rows:
        if last not in (None, row.cell):
            made.add_section()
        last = row.cell
        spread = f"{row.over_cloud_only.low:.2f}-{row.over_cloud_only.high:.2f}"
        made.add_row(
            WAYS[row.way].title,
            *network(row.cell),
            f"{row.tokens_per_answer:.1f}",
            f"{row.speed:.0f}",
            *(number(value, 1) for value in (row.first_token_ms, row.gap_p50_ms, row.gap_p95_ms, row.longest_gap_ms)),
            f"{row.bytes_up:.0f}",
            f"{row.bytes_down:.0f}",
            f"{row.steps_per_token:.2f}",
            f"{row.computed_per_token:.2f}",
            number(row.acceptance_length, 2),
            *("-" if share is None else f"{share:.0%}" for share in (row.thrown_away, row.edge_thrown_away)),
            *((f"{row.over_cloud_only.value:.2f}", spread) if row.way != CLOUD_ONLY.name else ("", "")),
            number(row.typical_over_cloud_only, 2),
            number(row.allowed, 2),
            f"{row.differences}/{row.answers}",
        )
    return made


def conclusion(report: NetworkReport) -> str:
    """What the sweep says of exactness, in one sentence."""
    asked = f"{report.different_questions} different prompts, {len(measured_cells(report))} cells"
    wrong, all_of_them = report.lossless_differences, report.lossless_answers
    return f"{wrong} of {all_of_them} lossless answers differ from cloud only's ({asked})"


def measured_cells(report: NetworkReport) -> list[NetworkCell]:
    return list(dict.fromkeys(row.cell for row in report.rows))


def network(cell: NetworkCell) -> tuple[str, str, str]:
    return f"{cell.round_trip:g} ms", f"{cell.uplink:g}", str(cell.clients)


def ratio(row: ModeRow) -> str:
    return f"{row.over_cloud_only.value:.2f} / {number(row.allowed, 2)}"


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def draw(report: NetworkReport, folder: Path) -> list[Path]:
    """Speed, bytes and cloud steps against the round trip: a row of panels for each uplink, a column for clients."""
    speeds = grid(report, speed_line, without=(CLOUD_ONLY.name, "edge"))
    sizes = grid(report, lambda name, rows: line(name, rows, lambda row: (row.bytes_up + row.bytes_down) / 1000))
    steps = grid(report, lambda name, rows: line(name, rows, lambda row: row.steps_per_token))
    x = "round trip, ms"
    title = "Speed over cloud only (bars: 95 % of such questions; dashed: what costs allow at best)"
    return [
        *plots.draw(folder / "speed", title, speeds, x, "speed over cloud only", level=1.0),
        *plots.draw(folder / "bytes", "Bytes of one answer on the network", sizes, x, "kB, both directions"),
        *plots.draw(folder / "steps", "Work of the cloud", steps, x, "engine steps per token"),
    ]


def grid(
    report: NetworkReport, make: Callable[[str, list[ModeRow]], SweepLine], without: tuple[str, ...] = ()
) -> list[list[SweepPanel]]:
    ways = [name for name in report.plan.ways if name not in without]

    def panel(uplink: float, clients: int) -> SweepPanel:
        here = [r for r in report.rows if (r.cell.uplink, r.cell.clients) == (uplink, clients)]
        found = {name: [row for row in here if row.way == name] for name in ways}
        title = f"{clients} client{'s' if clients > 1 else ''}, {uplink:g} Mbit/s"
        return SweepPanel(title, [make(name, rows) for name, rows in found.items() if rows])

    return [[panel(uplink, clients) for clients in report.plan.clients] for uplink in report.plan.uplinks]


def line(way: str, rows: list[ModeRow], value: Callable[[ModeRow], float]) -> SweepLine:
    return SweepLine(WAYS[way].title, colour(way), [row.cell.round_trip for row in rows], [value(row) for row in rows])


def speed_line(way: str, rows: list[ModeRow]) -> SweepLine:
    best = [row.allowed for row in rows if row.allowed is not None]
    return replace(
        line(way, rows, lambda row: row.over_cloud_only.value),
        low=[row.over_cloud_only.low for row in rows],
        high=[row.over_cloud_only.high for row in rows],
        bound=best if len(best) == len(rows) else (),
    )


def colour(way: str) -> str:
    """The same in every plot."""
    return f"C{list(WAYS).index(way)}"
