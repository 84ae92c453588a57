"""Adds the curves of all policies to a report, for each cost: a chart, a table with RouteLLM's metrics, findings."""

from collections.abc import Iterator, Sequence

from experiments.report.schema import Chart, Curve, Difference, ExperimentReport, Measure, ReportTable
from experiments.routing.curves import RECOVERED, PolicyCurve, curves
from experiments.routing.policies import cross_fitted
from experiments.routing.recorded import COSTS, RecordedAnswers

NOTE = (
    "Costs are relative to cloud only. Everything that is fitted or chosen (a router's weights, and the thresholds for "
    "each budget) comes from one half of the questions and is judged on the other, both ways round. Random: as many "
    "questions go to the cloud, whichever. APGR: the share of the distance from edge only to cloud only that is "
    "recovered, mean over all costs; CPT(50 %): the cost at which half of it is (RouteLLM, arXiv 2406.18665, there by "
    "calls). In brackets: 95 % of a bootstrap over the questions."
)


def add_curves(report: ExperimentReport, answers: RecordedAnswers, tokens: Sequence[int]) -> None:
    """`tokens`: for each router, of the edge's first ones that it looks at."""
    for name, (meaning, _) in COSTS.items():
        if not answers.costs[name][answers.cloud].any():
            continue  # a run of before this was counted
        found = curves(cross_fitted(answers, name, tokens))
        report.charts.append(_chart(name, meaning, found))
        report.tables.append(_table(meaning, found))
        report.findings += list(_findings(meaning, found))


def _chart(name: str, meaning: str, found: Sequence[PolicyCurve]) -> Chart:
    cloud = found[0].quality[-1].value
    return Chart(
        name=f"quality_over_{name}",
        title=f"Quality over {meaning}",
        note=NOTE,
        x="relative to cloud only",
        y="quality",
        curves=[_rising(one) for one in found],
        level=cloud,
    )


def _rising(one: PolicyCurve) -> Curve:
    """The points in order of their cost, each cost once."""
    points = dict(sorted(zip(one.cost, one.quality, strict=True), key=lambda point: (point[0], point[1].value)))
    return Curve(name=one.name, x=list(points), y=list(points.values()))


def _table(meaning: str, found: Sequence[PolicyCurve]) -> ReportTable:
    others = list(dict.fromkeys(name for one in found for name in one.beside))
    shares = [f"CPT({share:.0%})".replace("%", " %") for share in RECOVERED]
    return ReportTable(
        title=f"By {meaning}",
        note=NOTE,
        heads=["policy", "area under the curve", "APGR", *shares, *(f"APGR minus that of {name}" for name in others)],
        rows=[
            [
                one.name,
                shown(one.area, 3),
                shown(one.apgr, 3),
                *(shown(one.cpt[share]) for share in RECOVERED),
                *(shown(one.beside.get(name), 3) for name in others),
            ]
            for one in found
        ],
    )


def _findings(meaning: str, found: Sequence[PolicyCurve]) -> Iterator[str]:
    for one in found:
        if (to_gate := one.beside.get("token gate")) is not None and one.name != "random":
            word = "no clear difference" if not to_gate.clear else "better" if to_gate.value > 0 else "worse"
            yield (
                f"{one.name}: APGR {shown(one.apgr)} over {meaning.partition(':')[0]}, {word} beside the token gate's "
                f"({shown(to_gate)}); half of the distance to the cloud costs {shown(one.cpt[0.5])} of cloud only"
            )


def shown(value: Measure | Difference | None, digits: int = 2) -> str:
    return "" if value is None else f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"
