"""Compares the time of configurations with cloud only under each load condition, as a table and as curves."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from experiments.harness.statistics import Pair, speed_ratio
from experiments.harness.trials import ExperimentPlan, LoadCondition, Network, TrialResult
from experiments.report.schema import Chart, Curve, Measure, ReportTable
from experiments.setup.ablations import CLOUD_ONLY


class Saved(NamedTuple):
    """The share of cloud only's time that is saved, with its 95 % interval over questions."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """As a change of the time: saving one fifth is −20 %."""
        return f"{-self.value:+.1%} [{-self.high:+.1%}, {-self.low:+.1%}]".replace("-", "−")

    @property
    def ratio(self) -> Measure:
        """The time over cloud only's time."""
        return Measure(1 - self.value, 1 - self.high, 1 - self.low)


def saved(entries: Iterable[TrialResult], name: str, cell: int) -> Saved | None:
    """The time saved over all answers that both gave; the bootstrap draws a question with all its repeats.

    `cell`: number of the load condition. None where no question has an answer of both.
    """
    in_cell = [entry for entry in entries if entry.what.cell == cell]
    mine, cloud = latencies(in_cell, name), latencies(in_cell, CLOUD_ONLY.name)
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for question, repeat in mine.keys() & cloud.keys():
        sums[question][0] += mine[question, repeat]
        sums[question][1] += cloud[question, repeat]
    if not sums:
        return None
    # With equal amounts, the ratio of speeds is cloud only's time over this one's.
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
    """Cloud only's mean time and the change of each configuration, a row for each load condition."""
    rows = []
    for number, condition in enumerate(plan.cells):
        cloud = latencies((entry for entry in entries if entry.what.cell == number), CLOUD_ONLY.name)
        mean = f"{sum(cloud.values()) / len(cloud):.1f}" if cloud else "–"
        rows.append([describe(condition), mean, *(str(saved(entries, name, number) or "–") for name in names)])
    return ReportTable(
        title="Where it holds: time against cloud only",
        heads=["network, clients", "cloud only, ms", *names],
        rows=rows,
        note="Below zero: less time than cloud only. With several clients it is the time that each of them waits.",
    )


def describe(condition: LoadCondition) -> str:
    """For example "14 ms, 20 Mbit/s, 4 clients"."""
    network = _network(condition)
    clients = f", {condition.clients} clients" if condition.clients > 1 else ""
    return f"{network.round_trip_ms:g} ms, {network.mbit:g} Mbit/s{clients}"


SWEEPS: Sequence[tuple[str, str, Callable[[LoadCondition], float]]] = (
    ("round-trips", "round trip, ms", lambda condition: _network(condition).round_trip_ms),
    ("uplinks", "Mbit/s", lambda condition: _network(condition).mbit),
    ("clients", "concurrent clients", lambda condition: condition.clients),
)
"""What may differ between load conditions: a name, a title, and its value."""


def charts(plan: ExperimentPlan, names: Sequence[str], entries: Sequence[TrialResult]) -> list[Chart]:
    """The time over cloud only's, a chart for each sweep."""
    charts = []
    for name, title, value in SWEEPS:
        usual = value(plan.cells[0])
        along = [(value(condition), n) for n, condition in enumerate(plan.cells) if n == 0 or value(condition) != usual]
        curves = [each for configuration in names if (each := curve(configuration, along, entries))]
        if len(along) > 1 and curves:
            charts.append(
                Chart(
                    name=name,
                    title=f"Time against cloud only, over {title.partition(',')[0]}",
                    note="Below the dashed line: less time than cloud only. Bars are 95 % intervals.",
                    x=title,
                    y="time over cloud only's",
                    curves=curves,
                    level=1.0,
                )
            )
    return charts


def curve(name: str, along: Sequence[tuple[float, int]], entries: Sequence[TrialResult]) -> Curve | None:
    """One configuration's curve; `along`: values, each with the number of its load condition."""
    points = sorted((x, share) for x, number in along if (share := saved(entries, name, number)))
    return Curve(name=name, x=[x for x, _ in points], y=[share.ratio for _, share in points]) if points else None


def _network(condition: LoadCondition) -> Network:
    assert condition.network is not None, "experiments with a split model always simulate a network"
    return condition.network
