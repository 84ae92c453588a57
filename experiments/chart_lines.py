"""Lines over a number, with intervals, as SVG that a page's style sheet colours. Knows numbers, and no report."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from experiments import svg
from experiments.report_plots import SIZE, Spread, x_axis, y_axis
from experiments.svg import Scale, element, scale_for

COLOURS = 6
"""Classes c0, c1, ... that the style sheet knows."""


@dataclass(frozen=True)
class Line:
    """Values with intervals over x, which increases; `about`: each of them in words. One line at least has a point."""

    name: str
    x: Sequence[float]
    y: Sequence[Spread]
    about: Sequence[str]


def lines(
    drawn: Sequence[Line], x_title: str, y_title: str, width: float, label: str, level: float | None = None
) -> Markup:
    """All lines in one pair of axes, their names above; `level` is drawn across."""
    legend = list(_legend(drawn, width))
    top = 24.0 + (legend[-1][1] + 20 if legend else 0)
    height = top + min(380.0, max(240.0, 0.42 * width)) + 44
    left, bottom = 58.0, height - 44.0
    x = scale_for([value for line in drawn for value in line.x], left, width - 12, zero=False)
    ends = [end for line in drawn for spread in line.y for end in (spread.low, spread.high)]
    y = scale_for([*ends, *([] if level is None else [level])], bottom, top)
    axes = itertools.chain(x_axis(x, top, bottom, x_title, int(width / 90)), y_axis(y, left, width - 12))
    across = [] if level is None else [svg.line(left, y(level), width - 12, y(level), "level")]
    names = [_key(n, line.name, *place) for n, (line, place) in enumerate(zip(drawn, legend, strict=True))]
    marks = [_line(n, line, x, y) for n, line in enumerate(drawn)]
    return svg.drawing(width, height, label, *axes, svg.text(0, top - 12, y_title, "axis"), *across, *names, *marks)


def _legend(drawn: Sequence[Line], width: float) -> Iterator[tuple[float, float]]:
    """Where each name stands: side by side, in as many rows as they need."""
    left, top = 0.0, 4.0
    for line in drawn:
        wide = svg.width_of(line.name, SIZE) + 34
        if left and left + wide > width:
            left, top = 0.0, top + 18
        yield left, top
        left += wide


def _key(number: int, name: str, left: float, top: float) -> Markup:
    mark = element("rect", x=left, y=top, width=12.0, height=4.0, class_="swatch")
    return element("g", mark, svg.text(left + 17, top + 6, name), class_=f"series c{number % COLOURS}")


def _line(number: int, line: Line, x: Scale, y: Scale) -> Markup:
    places = [(x(at), y(spread.value)) for at, spread in zip(line.x, line.y, strict=True)]
    parts = [svg.path(places, "curve")] if len(places) > 1 else []
    for (at, to), spread, about in zip(places, line.y, line.about, strict=True):
        ends = svg.line(at, y(spread.low), at, y(spread.high), "interval")
        dot = element("circle", cx=at, cy=to, r=3.5), element("circle", cx=at, cy=to, r=12.0, class_="touch")
        parts.append(element("g", svg.title(about), ends, *dot))
    return element("g", *parts, class_=f"series c{number % COLOURS}")
