"""The report of a fleet: each tenant's share of the clouds over its fair share, verify times and memory over time."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from experiments import soak_report
from experiments.counters.vitals import Vitals
from experiments.fleet.load import FleetTally, RoundTime, TenantLoad
from experiments.report import document, html, markdown, panel_grid
from experiments.report.document import Document, ReportFiles
from experiments.report.line_plot import PlotLine, PlotPoint, class_of
from experiments.report.panel_grid import GridPanel, PanelGrid
from experiments.report.particulars import command, described
from experiments.report.schema import Environment, Measure, ReportTable
from experiments.report.words import Sentence

NAME = "fleet_report"
WINDOWS = 40
"""Points of a line over time."""
LEAST_SHARE = 0.8


class TenantResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one tenant got. `demand`: rounds that its edges would ask for if none waited for an engine; `fair`: its fair
    share of all.

    `p50`, `p95`: seconds of a verify as the edge sees them.
    """

    load: TenantLoad
    rounds: int
    demand: float
    fair: float
    p50: float
    p95: float
    answers: Counter[str]

    @property
    def share(self) -> float:
        return self.rounds / self.fair if self.fair else 1.0


class FleetReport(msgspec.Struct, kw_only=True):
    """`windows`: by tenant, the 95th percentile of verify in each part of the time, by its end in seconds."""

    environment: Environment
    options: dict[str, Any]
    seconds: float
    tenants: list[TenantResult]
    windows: dict[str, list[tuple[float, float]]]
    failures: Counter[str] = Counter()
    samples: list[Vitals] = []


def fair_shares(capacity: float, demand: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """The weighted max-min fair shares of a capacity: nobody has more than it demands, and what it leaves, others have.

    As in Bertsekas and Gallager, Data Networks (1992), 6.5.2.
    """
    shares = dict.fromkeys(demand, 0.0)
    hungry = {name for name, wanted in demand.items() if wanted > 0}
    while hungry and capacity > 1e-9:
        level = capacity / sum(weights[name] for name in hungry)
        filled = {name for name in hungry if demand[name] - shares[name] <= level * weights[name]}
        for name in filled or hungry:
            given = min(demand[name] - shares[name], level * weights[name])
            shares[name] += given
            capacity -= given
        hungry = hungry - filled if filled else set()
    return shares


def results(tally: FleetTally, loads: Sequence[TenantLoad], seconds: float) -> list[TenantResult]:
    """Batches have what others leave: their fair share is of that, among themselves."""
    by_tenant: dict[str, list[RoundTime]] = {load.name: [] for load in loads}
    for one in tally.rounds:
        by_tenant[one.tenant].append(one)

    def demand(load: TenantLoad) -> float:
        if not (rounds := len(by_tenant[load.name])):
            return float("inf")
        return load.edges * seconds / (tally.turn_seconds + tally.paused[load.name] / rounds)

    fair: dict[str, float] = {}
    for batch in (False, True):
        own = [load for load in loads if load.batch is batch]
        served = float(sum(len(by_tenant[load.name]) for load in own))
        fair |= fair_shares(served, {load.name: demand(load) for load in own}, {load.name: load.weight for load in own})
    return [
        _result(load, by_tenant[load.name], demand(load), fair[load.name], _answers(tally, load.name)) for load in loads
    ]


def _result(
    load: TenantLoad, rounds: Sequence[RoundTime], demand: float, fair: float, answers: Counter[str]
) -> TenantResult:
    times = [one.seconds for one in rounds] or [0.0]
    p50, p95 = (float(np.quantile(times, q)) for q in (0.5, 0.95))
    return TenantResult(load=load, rounds=len(rounds), demand=demand, fair=fair, p50=p50, p95=p95, answers=answers)


def _answers(tally: FleetTally, tenant: str) -> Counter[str]:
    return Counter({outcome: number for (name, outcome), number in tally.answers.items() if name == tenant})


def windows(rounds: Iterable[RoundTime], seconds: float) -> dict[str, list[tuple[float, float]]]:
    width, found = seconds / WINDOWS, dict[str, dict[int, list[float]]]()
    for one in rounds:
        found.setdefault(one.tenant, {}).setdefault(int(one.at / width), []).append(one.seconds)
    return {
        tenant: [(width * (number + 1), float(np.quantile(times, 0.95))) for number, times in sorted(parts.items())]
        for tenant, parts in found.items()
    }


def write(report: FleetReport, files: ReportFiles) -> Document:
    """Writes the report's files, the plots among them."""
    written = document_of(report)
    files.folder.mkdir(parents=True, exist_ok=True)
    for grid in written.grids:
        panel_grid.write(grid, files.folder)
    document.write_files(files, report, markdown.render_document(written), html.render_document(written))
    return written


def document_of(report: FleetReport) -> Document:
    return Document(
        title="A fleet of edges",
        byline=[
            f"{sum(one.load.edges for one in report.tenants)} edges, {report.seconds / 60:.1f} minutes",
            report.environment.created,
        ],
        summary=list(sentences(report)),
        warnings=[f"{number} × {message}" for message, number in report.failures.most_common(10)],
        grids=[verify_grid(report), soak_report.grid(report.samples, "memory", "fleet_memory")],
        tables=[tenants_table(report), soak_report.growth_table(report.samples)],
        environment=described(report.environment),
        command=command(report.options),
    )


def sentences(report: FleetReport) -> Iterator[Sentence]:
    answers: Counter[str] = sum((one.answers for one in report.tenants), Counter())
    yield Sentence("Answers", ", ".join(f"{number} {outcome}" for outcome, number in sorted(answers.items())))
    yield Sentence("Rounds", f"{sum(one.rounds for one in report.tenants) / report.seconds:.0f} in a second")
    people = [one for one in report.tenants if not one.load.batch]
    least = min(people, key=lambda one: one.share)
    met = "at least" if least.share >= LEAST_SHARE else "less than"
    yield Sentence("Fairness", f"{least.load.name} has {least.share:.2f} of its fair share, {met} {LEAST_SHARE}")
    yield soak_report.growth_sentence(report.samples)


def tenants_table(report: FleetReport) -> ReportTable:
    return ReportTable(
        title="Tenants",
        note="Fair: the weighted max-min share of all rounds of people, or of all rounds of batches. Demand: what the "
        "edges would ask for if no round waited for a place in an engine.",
        heads=[
            *("tenant", "weight", "edges", "draft, ms a token", "demand, rounds/s", "fair, rounds/s", "got, rounds/s"),
            *("share of fair", "verify p50, s", "p95, s", "answered", "refused (429)", "failed", "wrong"),
        ],
        rows=[_row(one, report.seconds) for one in report.tenants],
    )


def _row(one: TenantResult, seconds: float) -> list[str]:
    rates = [f"{number / seconds:.1f}" for number in (one.demand, one.fair, one.rounds)]
    outcomes = [str(one.answers[name]) for name in ("answered", "refused", "failed", "wrong")]
    name = f"{one.load.name} (batch)" if one.load.batch else one.load.name
    load = [f"{one.load.weight:g}", str(one.load.edges), f"{one.load.draft_ms:g}"]
    return [name, *load, *rates, f"{one.share:.2f}", f"{one.p50:.3f}", f"{one.p95:.3f}", *outcomes]


def verify_grid(report: FleetReport) -> PanelGrid:
    panels = []
    for batch, title in ((False, "people"), (True, "batches")):
        names = [one.load.name for one in report.tenants if one.load.batch is batch and one.load.name in report.windows]
        lines = [
            PlotLine(name, class_of(number), [_point(name, *at) for at in report.windows[name]])
            for number, name in enumerate(names)
        ]
        panels += [GridPanel(title, lines)] if lines else []
    return PanelGrid("fleet_verify", "Verify, 95th percentile", "", "minutes", "seconds", 2, panels)


def _point(tenant: str, at: float, seconds: float) -> PlotPoint:
    about = f"{tenant}, {at / 60:.1f} minutes: {seconds:.3f} s"
    return PlotPoint(round(at / 60, 2), Measure(seconds, seconds, seconds), about)
