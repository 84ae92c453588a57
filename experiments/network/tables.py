"""The tables of a network sweep's report, its conclusion, and how a terminal shows a table."""

from rich.box import SIMPLE, Box
from rich.table import Table

from experiments.network.answer_modes import ANSWER_MODES, CLOUD_ONLY, EDGE_DRAFTER
from experiments.network.schema import ModeRow, NetworkReport, Worth
from experiments.report.schema import ReportTable

NETWORK = "network, clients"
MEASURES = [
    "tokens per answer", "tokens/s", "first token, ms", "gap p50, ms", "gap p95, ms", "longest gap, ms", "bytes up",
    "bytes down", "steps/ token", "computed/ token", "tokens/ round", "drafts rejected", "edge drafts unused",
    "over cloud only", "95 % interval", "typical question", "at best", "differ",
]  # fmt: skip


def brief(report: NetworkReport) -> ReportTable:
    """Only the speed of each mode over cloud only, for a terminal of 80 columns."""
    others = other_modes(report)
    ratios = {(row.cell, row.way): f"{row.over_cloud_only.value:.2f}" for row in report.rows}
    return ReportTable(
        title="Speed over cloud only",
        note="",
        heads=["ms", "Mbit /s", "at once", *(name.replace("-", " ") for name in others)],
        rows=[
            [f"{cell.round_trip:g}", f"{cell.uplink:g}", str(cell.clients), *(ratios[cell, name] for name in others)]
            for cell in report.cells
        ],
    )


def ratios(report: NetworkReport) -> ReportTable:
    """A row for each cell: the speed of each mode over cloud only, and the worth of the parts."""
    others = other_modes(report)
    parts = list(dict.fromkeys(worth.part for worth in report.worth))
    rows = {(row.cell, row.way): row for row in report.rows}
    worth = {(one.cell, one.part): f"{one.ratio.value:.2f}" for one in report.worth}
    return ReportTable(
        title="Speed over cloud only, in figures",
        note="Of each mode: measured / at best, as acceptance, verify time and draft time allow. Worth of a part: the "
        "speed with it over the speed without it. Differences: lossless answers that are not cloud only's.",
        heads=[
            NETWORK,
            "cloud only, tokens/s",
            *(ANSWER_MODES[name].title for name in others),
            *(f"worth of {part}" for part in parts),
            "differences",
        ],
        rows=[
            [
                cell.title,
                f"{rows[cell, CLOUD_ONLY.name].speed:.0f}",
                *(
                    f"{rows[cell, name].over_cloud_only.value:.2f} / {number(rows[cell, name].allowed, 2)}"
                    for name in others
                ),
                *(worth.get((cell, part), "–") for part in parts),
                "–"
                if report.plan.temperature
                else str(sum(rows[cell, name].differences for name in others if rows[cell, name].lossless)),
            ]
            for cell in report.cells
        ],
    )


def details(report: NetworkReport) -> ReportTable:
    """A row for each mode in each cell, with everything that was measured."""
    sampled = report.plan.temperature > 0
    return ReportTable(
        title="Each answer mode by itself",
        note="Bytes of one answer on the network, headers included. Steps and computed tokens of the cloud for each "
        "token of the answers. Gap: time between two tokens. Differ: answers that are not cloud only's.",
        heads=["mode", NETWORK, *MEASURES],
        rows=[
            [ANSWER_MODES[row.way].title, row.cell.title, *measures(row), "–" if sampled else differences(row)]
            for row in report.rows
        ],
    )


def measures(row: ModeRow) -> list[str]:
    """In the columns of MEASURES."""
    ratio, times = row.over_cloud_only, (row.first_token_ms, row.gap_p50_ms, row.gap_p95_ms, row.longest_gap_ms)
    return [
        f"{row.tokens_per_answer:.1f}",
        f"{row.speed:.0f}",
        *(number(value, 1) for value in times),
        f"{row.bytes_up:.0f}",
        f"{row.bytes_down:.0f}",
        f"{row.steps_per_token:.2f}",
        f"{row.computed_per_token:.2f}",
        number(row.acceptance_length, 2),
        *("–" if share is None else f"{share:.0%}" for share in (row.thrown_away, row.edge_thrown_away)),
        *((f"{ratio.value:.2f}", f"{ratio.low:.2f}–{ratio.high:.2f}") if row.way != CLOUD_ONLY.name else ("", "")),
        number(row.typical_over_cloud_only, 2),
        number(row.allowed, 2),
    ]


def differences(row: ModeRow) -> str:
    return f"{row.differences}/{row.answers}"


def conclusion(report: NetworkReport) -> str:
    """The result for exactness, in one sentence; sampled answers differ by chance."""
    asked = f"{report.different_questions} different prompts, {len(report.cells)} cells"
    if report.plan.temperature:
        return (
            f"{report.lossless_answers} lossless answers, sampled at temperature {report.plan.temperature:g} ({asked})"
        )
    different, answers = report.lossless_differences, report.lossless_answers
    return f"{different} of {answers} lossless answers differ from cloud only's ({asked})"


def instead(report: NetworkReport) -> ReportTable:
    """A row for each cell: the speed of an edge that drafts losslessly over that of each mode in its place."""
    names = list(dict.fromkeys(one.part for one in report.instead))
    found = {(one.cell, one.part): one.ratio for one in report.instead}
    return ReportTable(
        title="An edge drafter over what might be picked in its place",
        note=f"Speed of {ANSWER_MODES[EDGE_DRAFTER].title} over each, with 95 % intervals; above 1 the edge drafter "
        "is faster.",
        heads=[NETWORK, *(ANSWER_MODES[name].title for name in names)],
        rows=[
            [
                cell.title,
                *(f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]" for one in (found[cell, name] for name in names)),
            ]
            for cell in report.cells
        ],
    )


def verdicts(report: NetworkReport) -> list[str]:
    """For each mode that might be picked instead, in which cells an edge drafter is faster, and in which it is not."""
    by_mode: dict[str, list[Worth]] = {}
    for one in report.instead:
        by_mode.setdefault(one.part, []).append(one)
    return [f"than {ANSWER_MODES[name].title}: {_verdict(found)}" for name, found in by_mode.items()]


def _verdict(found: list[Worth]) -> str:
    cells = {
        "faster": [one.cell.title for one in found if one.ratio.low > 1],
        "slower": [one.cell.title for one in found if one.ratio.high < 1],
        "no clear difference": [one.cell.title for one in found if one.ratio.low <= 1 <= one.ratio.high],
    }
    return "; ".join(
        f"{word} in {len(titles)} of {len(found)} cells"
        + (f" ({' | '.join(titles)})" if len(titles) < len(found) else "")
        for word, titles in cells.items()
        if titles
    )


def other_modes(report: NetworkReport) -> list[str]:
    return [name for name in report.plan.ways if name != CLOUD_ONLY.name]


def number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def for_terminal(table: ReportTable, box: Box = SIMPLE, rows_together: int = 0) -> Table:
    """`rows_together`: a line is drawn after each group of so many rows."""
    padding = 0 if box is SIMPLE else (0, 1)
    shown = Table(
        title=table.title,
        title_justify="left",
        caption=table.note or None,
        caption_justify="left",
        box=box,
        padding=padding,
    )
    for n, head in enumerate(table.heads):
        words = [*head.split(), *(row[n] for row in table.rows)]
        shown.add_column(head, justify="right" if n else "left", width=max(map(len, words)))
    for n, row in enumerate(table.rows, start=1):
        shown.add_row(
            *(cell.replace("\u00a0", " ") for cell in row), end_section=bool(rows_together) and n % rows_together == 0
        )
    return shown
