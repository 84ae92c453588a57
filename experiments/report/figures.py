"""Turns a report into figures: their numbers, captions and legends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from common.types import Provenance
from experiments.report import bar_plots as plots
from experiments.report import svg
from experiments.report.bar_plots import Bar
from experiments.report.line_plot import PlotLine, PlotPoint, class_of, over_number
from experiments.report.scatter_plot import Point, scatter
from experiments.report.schema import Chart, Contribution, Curve, ExperimentReport, Measure
from experiments.report.words import CLOUD_RATE, QUALITY, Figures, contributed, headed, lower

NARROW, WIDE, PANEL = 360.0, 940.0, 300.0
"""Widths in CSS pixels. Each plot is drawn for a phone and for a desk; the style sheet shows one of the two."""
Draw = Callable[[float], Markup]


@dataclass(frozen=True)
class Figure:
    """A plot in both widths, and its numbers as a table; `legend`: each name, and the classes that colour it."""

    name: str
    title: str
    caption: str
    narrow: Markup
    wide: Markup
    legend: Sequence[tuple[str, str]] = ()
    heads: Sequence[str] = ()
    rows: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class ContributionPanel:
    """The contribution of one part by one measure; `reading` and `change` describe the result without the part."""

    feature: str
    measure: str
    reading: str
    change: str
    drawing: Markup


def trade(report: ExperimentReport, measured: dict[str, Figures]) -> Figure | None:
    """Quality against cloud rate; None for a sweep, which has curves instead."""
    if report.sweep or QUALITY not in measured or CLOUD_RATE not in measured:
        return None
    quality, rate = measured[QUALITY], measured[CLOUD_RATE]
    points = []
    for one in report.configurations:
        x, y = one.measures.get(CLOUD_RATE), one.measures.get(QUALITY)
        if x is not None and y is not None:
            about = f"{one.name}: {headed(quality)} {quality.measure(y)}, {lower(headed(rate))} {rate.measure(x)}"
            points.append(Point(one.name, x, y, about, marked=one.name == report.baseline))
    title = f"{quality.info.title} against {lower(rate.info.title)}"
    drawn = _both(lambda width: scatter(points, f"{headed(rate)} →", f"↑ {headed(quality)}", width, title))
    caption = [
        f"{title}; lines are 95 % intervals. {quality.info.title} is {report.workload.metric.replace('_', ' ')}.",
        f"The best place is at the top left. {report.baseline} is in colour.",
        "A point without room for its name shows it as a tooltip.",
    ]
    return Figure("trade", title, " ".join(caption), *drawn)


def latencies(report: ExperimentReport) -> Figure | None:
    rows = {one.name: one.latencies_ms for one in report.configurations if one.latencies_ms}
    if not rows:
        return None
    title = "Latency of each answer"
    drawn = _both(lambda width: plots.distributions(rows, "ms →", width, title, lambda ms: f"{ms:.0f} ms"))
    caption = (
        "Latency of each answer, as a density, or as dots where there are few answers. Below: from the 5th to the 95th "
        "percentile (thin), the middle half (thick), the median (ring)."
    )
    heads = ["configuration", *(f"{100 * share:.0f} %" for share in plots.QUANTILES)]
    table = [[name, *(svg.label_of(round(ms)) for ms in plots.quantiles(values))] for name, values in rows.items()]
    return Figure("latencies", title, caption, *drawn, heads=heads, rows=table)


def provenance(report: ExperimentReport) -> Figure | None:
    rows = {one.name: one.provenance for one in report.configurations if sum(one.provenance.values())}
    if not rows:
        return None
    kinds = [kind.value for kind in Provenance if any(row.get(kind.value) for row in rows.values())]
    title = "Tokens by provenance"
    drawn = _both(lambda width: plots.stacks(rows, kinds, width, f"{title}, a bar for each configuration"))
    caption = "The source of the tokens of all answers; at the right, their number."
    table = [[name, *(svg.label_of(row.get(kind, 0)) for kind in kinds)] for name, row in rows.items()]
    legend = [(kind, f"kind {kind}") for kind in kinds]
    return Figure("provenance", title, caption, *drawn, legend, ["configuration", *kinds], table)


def chart(one: Chart) -> Figure:
    """Draws a chart of the experiment."""
    curves = [_line(curve, class_of(n)) for n, curve in enumerate(one.curves)]
    legend = [(line.name, f"curve {line.class_}") for line in curves]
    if one.level is not None:
        level = Measure(one.level, one.level, one.level)
        curves.append(PlotLine(f"{one.level:g}", "end", [PlotPoint(level, level, f"{one.level:g}")]))
    drawn = _both(lambda width: over_number(curves, f"{one.x} →", f"↑ {one.y}", width, one.title))
    heads = [one.x, *(curve.name for curve in one.curves)]
    places = sorted({x for curve in one.curves for x in curve.x})
    by_place = [dict(zip(curve.x, curve.y, strict=True)) for curve in one.curves]
    rows = [[svg.label_of(x), *(_spread(found.get(x)) for found in by_place)] for x in places]
    return Figure(one.name, one.title, one.note, *drawn, legend, heads, rows)


def _line(curve: Curve, class_: str) -> PlotLine:
    points = zip(curve.x, curve.y, strict=True)
    places = [PlotPoint(float(x), y, f"{curve.name}, {svg.label_of(x)}: {_spread(y)}") for x, y in points]
    return PlotLine(curve.name, class_, places)


def _spread(found: Measure | None) -> str:
    return f"{found.value:.4g} [{found.low:.4g}, {found.high:.4g}]" if found else "–"


def panels(report: ExperimentReport, measured: dict[str, Figures]) -> list[ContributionPanel]:
    """Draws each measure with and without its part, with intervals."""
    return [panel(report, one, measured[one.measure]) for one in report.contributions if one.measure in measured]


def panel(report: ExperimentReport, one: Contribution, written: Figures) -> ContributionPanel:
    spreads = {it.name: it.measures.get(one.measure) for it in report.configurations}

    def bar(name: str, value: float, configuration: str) -> Bar:
        spread = spreads.get(configuration) or Measure(value, value, value)
        return Bar(name, Measure(value, spread.low, spread.high), written.number(value), name)

    rows = bar("with", one.baseline, report.baseline), bar("without", one.without, one.configuration)
    drawing = plots.bars(rows, PANEL, f"{one.feature}: {contributed(one, written)}")
    return ContributionPanel(
        one.feature, headed(written), written.reading(one.difference), written.change(one.difference), drawing
    )


def _both(draw: Draw) -> tuple[Markup, Markup]:
    return draw(NARROW), draw(WIDE)
