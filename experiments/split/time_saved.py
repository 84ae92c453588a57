"""How much less time a way takes than cloud only, in each cell of a sweep: table and curves. Knows no server."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from experiments.harness.statistics import Pair, speed_ratio
from experiments.harness.trials import ExperimentPlan, LoadCondition, Network, TrialResult
from experiments.report.schema import Chart, Curve, Measure, ReportTable
from experiments.setup.ablations import CLOUD_ONLY


class Saved(NamedTuple):
    """The share of cloud only's time that is saved, with the interval that holds 95 % of what such questions give."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """As a change of the time: saving a fifth is −20 %."""
        return f"{-self.value:+.1%} [{-self.high:+.1%}, {-self.low:+.1%}]".replace("-", "−")

    @property
    def ratio(self) -> Measure:
        """Time over cloud only's."""
        return Measure(1 - self.value, 1 - self.high, 1 - self.low)


def saved(entries: Iterable[TrialResult], name: str, cell: int) -> Saved | None:
    """By all milliseconds of the answers that both gave; a question is drawn again with all its repeats."""
    known = [entry for entry in entries if entry.what.cell == cell]
    mine, cloud = latencies(known, name), latencies(known, CLOUD_ONLY.name)
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for question, repeat in mine.keys() & cloud.keys():
        sums[question][0] += mine[question, repeat]
        sums[question][1] += cloud[question, repeat]
    if not sums:
        return None
    # With amounts alike, the ratio of speeds is cloud only's time over this one's.
    times = speed_ratio([Pair(1.0, ms, 1.0, base) for ms, base in sums.values()])
    return Saved(1 - 1 / times.value, 1 - 1 / times.low, 1 - 1 / times.high)


def latencies(entries: Iterable[TrialResult], name: str) -> dict[tuple[int, int], float]:
    """Milliseconds of each answer, by question and repeat."""
    return {
        (row.question, row.repeat): row.latency_ms
        for entry in entries
        if entry.what.configuration == name
        for row in entry.rows
        if row.error is None
    }


def table(plan: ExperimentPlan, names: Sequence[str], entries: Sequence[TrialResult]) -> ReportTable:
    rows = []
    for number, cell in enumerate(plan.cells):
        cloud = latencies((entry for entry in entries if entry.what.cell == number), CLOUD_ONLY.name)
        mean = f"{sum(cloud.values()) / len(cloud):.1f}" if cloud else "–"
        rows.append([named(cell), mean, *(str(saved(entries, name, number) or "–") for name in names)])
    return ReportTable(
        title="Where it holds: time against cloud only",
        heads=["network, clients", "cloud only, ms", *names],
        rows=rows,
        note="Below zero: less time than cloud only. With several clients at once it is the time that each waits.",
    )


def named(cell: LoadCondition) -> str:
    network = _network(cell)
    clients = f", {cell.clients} clients" if cell.clients > 1 else ""
    return f"{network.round_trip_ms:g} ms, {network.mbit:g} Mbit/s{clients}"


SWEEPS: Sequence[tuple[str, str, Callable[[LoadCondition], float]]] = (
    ("round-trips", "round trip, ms", lambda cell: _network(cell).round_trip_ms),
    ("uplinks", "Mbit/s", lambda cell: _network(cell).mbit),
    ("clients", "clients at once", lambda cell: cell.clients),
)
"""What may differ between cells: a name, a title, and its value."""


def charts(plan: ExperimentPlan, names: Sequence[str], entries: Sequence[TrialResult]) -> list[Chart]:
    """Time over cloud only's, along each sweep that was made."""
    found = []
    for name, title, value in SWEEPS:
        usual = value(plan.cells[0])
        along = [(value(cell), n) for n, cell in enumerate(plan.cells) if n == 0 or value(cell) != usual]
        curves = [made for way in names if (made := curve(way, along, entries))]
        if len(along) > 1 and curves:
            found.append(
                Chart(
                    name=name,
                    title=f"Time against cloud only, over {title.partition(',')[0]}",
                    note="Below the dashed line it takes less time than cloud only; bars are 95 % intervals.",
                    x=title,
                    y="time over cloud only's",
                    curves=curves,
                    level=1.0,
                )
            )
    return found


def curve(way: str, along: Sequence[tuple[float, int]], entries: Sequence[TrialResult]) -> Curve | None:
    """`along`: values and the cells that have them."""
    known = sorted((x, it) for x, number in along if (it := saved(entries, way, number)))
    return Curve(name=way, x=[x for x, _ in known], y=[it.ratio for _, it in known]) if known else None


def _network(cell: LoadCondition) -> Network:
    assert cell.network is not None, "experiments with a split model always have one"
    return cell.network
