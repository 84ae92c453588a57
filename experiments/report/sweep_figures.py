"""Turns the series of a sweep into plots and a table of their points."""

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from experiments.report import line_plot
from experiments.report.line_plot import PlotLine, PlotPoint, class_of
from experiments.report.schema import ConfigurationReport, Curves, ExperimentReport, Measure, Series, SweepDescription
from experiments.report.words import Figures, headed, lower

LARGE, SMALL, PHONE = 940.0, 450.0, 360.0
"""Widths in CSS pixels. On a desk the first plot has the whole width, the others half of it."""


@dataclass(frozen=True)
class SweepFigure:
    title: str
    narrow: Markup
    wide: Markup
    large: bool


def legend(sweep: SweepDescription) -> list[tuple[str, str]]:
    """The name and the classes of each line."""
    return [(one.name, f"curve {class_of(n)}") for n, one in enumerate(sweep.series)]


def figures(report: ExperimentReport, measured: dict[str, Figures]) -> Iterator[SweepFigure]:
    """Draws the sweep's plots, except those of measures that were not measured."""
    sweep = report.sweep
    measurable = [] if sweep is None else [one for one in sweep.plots if {one.y, one.x or one.y} <= measured.keys()]
    for n, curves in enumerate(measurable):
        assert sweep is not None
        lines = [line for line in lines_of(report, sweep, curves, measured) if line.points]
        if not lines:
            continue
        y_title, over = headed(measured[curves.y]), sweep.parameter if curves.x is None else headed(measured[curves.x])
        title = f"{headed(measured[curves.y])} by {lower(over)}"
        draw = line_plot.over_number if curves.x is None else line_plot.over_measure
        large = n == 0
        widths = PHONE, LARGE if large else SMALL
        narrow, wide = (draw(lines, f"{over} →", f"↑ {y_title}", width, title) for width in widths)
        yield SweepFigure(title, narrow, wide, large)


def lines_of(
    report: ExperimentReport, sweep: SweepDescription, curves: Curves, measured: dict[str, Figures]
) -> list[PlotLine]:
    """A line for each series, which over a measure runs from end to end; and each end as a point of its own."""
    by_name = {one.name: one for one in report.configurations}
    ends = [PlotLine(name, "end", list(_points(by_name[name], None, curves, measured))) for name in sweep.ends]
    lines = []
    for n, series in enumerate(sweep.series):
        points = [
            point
            for name, at in zip(series.configurations, series.at, strict=True)
            for point in _points(by_name[name], at, curves, measured)
        ]
        if curves.x is not None:
            points = sorted([*points, *(_bare(point) for end in ends for point in end.points)], key=_x_of)
        lines.append(PlotLine(series.name, class_of(n), points))
    return [*lines, *ends]


def _points(
    one: ConfigurationReport, at: float | None, curves: Curves, measured: dict[str, Figures]
) -> Iterator[PlotPoint]:
    """The configuration's point, if it has both measures; `at`: its number in the series."""
    y, x = one.measures.get(curves.y), one.measures.get(curves.x or curves.y)
    if y is None or x is None:
        return
    about = f"{one.name}: {headed(measured[curves.y])} {measured[curves.y].measure(y)}"
    if curves.x is not None:
        about += f", {lower(headed(measured[curves.x]))} {measured[curves.x].measure(x)}"
    yield PlotPoint(x if curves.x is not None or at is None else at, y, about)


def _bare(point: PlotPoint) -> PlotPoint:
    """The point without its intervals, which are drawn at the end itself."""
    x, y = (one if isinstance(one, float) else one.value for one in (point.x, point.y))
    return PlotPoint(Measure(x, x, x), Measure(y, y, y), point.about)


def _x_of(point: PlotPoint) -> float:
    return point.x if isinstance(point.x, float) else point.x.value


def table(
    report: ExperimentReport, sweep: SweepDescription, measured: dict[str, Figures]
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table with every point of every series, in the measures that are drawn."""
    drawn = dict.fromkeys(name for one in sweep.plots for name in (one.x, one.y) if name)
    names = [name for name in drawn if name in measured]
    by_name = {one.name: one for one in report.configurations}

    def row(series: Series, at: float, name: str) -> list[str]:
        measures = by_name[name].measures
        values = [measured[key].measure(measures[key]) if key in measures else "–" for key in names]
        return [series.name, f"{at:g}", *values]

    rows = [
        row(series, at, name)
        for series in sweep.series
        for name, at in zip(series.configurations, series.at, strict=True)
    ]
    return ["", sweep.parameter, *(headed(measured[name]) for name in names)], rows
