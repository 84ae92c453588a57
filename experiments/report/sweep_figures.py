"""From a sweep's series to its plots and a table of their points. Knows neither how one is drawn nor its page."""

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from experiments.report import line_plot
from experiments.report.line_plot import PlotLine, PlotPoint, class_of
from experiments.report.schema import ConfigurationReport, Curves, ExperimentReport, Measure, Series, SweepDescription
from experiments.report.words import Figures, headed, lower

LARGE, SMALL, PHONE = 940.0, 450.0, 360.0
"""Widths in CSS pixels. The first plot has the whole width of a desk, the others half of it."""


@dataclass(frozen=True)
class SweepFigure:
    title: str
    narrow: Markup
    wide: Markup
    large: bool


def legend(sweep: SweepDescription) -> list[tuple[str, str]]:
    """The name and the class of each line."""
    return [(one.name, class_of(n)) for n, one in enumerate(sweep.series)]


def figures(report: ExperimentReport, measured: dict[str, Figures]) -> Iterator[SweepFigure]:
    """A plot for each of the sweep's, as far as its measures were measured."""
    sweep = report.sweep
    known = [] if sweep is None else [one for one in sweep.plots if {one.y, one.x or one.y} <= measured.keys()]
    for n, curves in enumerate(known):
        assert sweep is not None
        lines = [line for line in lines_of(report, sweep, curves, measured) if line.places]
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
    """A line for each series, from one end to the other where it is over a measure; and the ends by themselves."""
    by_name = {one.name: one for one in report.configurations}
    own = [(by_name[name], None) for name in sweep.ends]
    ends = [PlotLine(one.name, "end", list(_places(one, None, curves, measured))) for one, _ in own]
    found = []
    for n, series in enumerate(sweep.series):
        points = [
            place
            for name, at in zip(series.configurations, series.at, strict=True)
            for place in _places(by_name[name], at, curves, measured)
        ]
        if curves.x is not None:
            points = sorted([*points, *(_bare(place) for end in ends for place in end.places)], key=_place_of)
        found.append(PlotLine(series.name, class_of(n), points))
    return [*found, *ends]


def _places(
    one: ConfigurationReport, at: float | None, curves: Curves, measured: dict[str, Figures]
) -> Iterator[PlotPoint]:
    """The configuration's, if it has what is drawn."""
    y, x = one.measures.get(curves.y), one.measures.get(curves.x or curves.y)
    if y is None or x is None:
        return
    about = f"{one.name}: {headed(measured[curves.y])} {measured[curves.y].measure(y)}"
    if curves.x is not None:
        about += f", {lower(headed(measured[curves.x]))} {measured[curves.x].measure(x)}"
    yield PlotPoint(x if curves.x is not None or at is None else at, y, about)


def _bare(place: PlotPoint) -> PlotPoint:
    """Without its intervals, which the end has by itself."""
    x, y = (one if isinstance(one, float) else one.value for one in (place.x, place.y))
    return PlotPoint(Measure(x, x, x), Measure(y, y, y), place.about)


def _place_of(place: PlotPoint) -> float:
    return place.x if isinstance(place.x, float) else place.x.value


def table(
    report: ExperimentReport, sweep: SweepDescription, measured: dict[str, Figures]
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: every point of every series, by what is drawn."""
    names = dict.fromkeys(name for one in sweep.plots for name in (one.x, one.y) if name)
    known = [name for name in names if name in measured]
    by_name = {one.name: one for one in report.configurations}

    def row(series: Series, at: float, name: str) -> list[str]:
        found = by_name[name].measures
        values = [measured[key].measure(found[key]) if key in found else "–" for key in known]
        return [series.name, f"{at:g}", *values]

    rows = [
        row(series, at, name)
        for series in sweep.series
        for name, at in zip(series.configurations, series.at, strict=True)
    ]
    return ["", sweep.parameter, *(headed(measured[name]) for name in known)], rows
