"""Draws lines through points with intervals, as SVG that the style sheet colours.

Over a number (a threshold, a number of clients) the points lie at equal steps, one for each value: thresholds crowd and
clients double, and both stay readable. Over a measure they lie where they were measured.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from experiments.report import svg
from experiments.report.bar_plots import Spread, x_axis, y_axis
from experiments.report.svg import Scale, element, scale_for

COLOURS = 8
"""Lines have the classes line-0 to line-7; further lines start again at line-0, broken."""


@dataclass(frozen=True)
class PlotPoint:
    """A point of a line; `x` is a number or a measure; `about` describes it in words."""

    x: float | Spread
    y: Spread
    about: str


@dataclass(frozen=True)
class PlotLine:
    """A line through its points in their order; `class_` colours it. The name of a single point stands beside it.

    `limits`: the highest possible value at each point, as a dashed line; none if empty.
    """

    name: str
    class_: str
    points: Sequence[PlotPoint]
    limits: Sequence[float] = ()

    @property
    def is_level(self) -> bool:
        """Whether it is a single measure over a measure: a level right across a plot over a number."""
        return len(self.points) == 1 and not isinstance(self.points[0].x, float)


def class_of(number: int) -> str:
    return f"line-{number % COLOURS}" + (" broken" if number >= COLOURS else "")


def over_measure(lines: Sequence[PlotLine], x_title: str, y_title: str, width: float, label: str) -> Markup:
    """Draws lines over a measure, with both intervals of each point. `width` is in CSS pixels."""
    spreads = [point.x for line in lines for point in line.points if not isinstance(point.x, float)]
    frame = _Frame(lines, width)
    x = scale_for([end for one in spreads for end in (one.low, one.high)], frame.left, frame.right)
    axis = x_axis(x, frame.top, frame.bottom, x_title, int(width / 90))
    marks = Markup("").join(_line(line, x, frame.y, 0.0) for line in lines)
    return frame.drawing(axis, marks, y_title, label)


def over_number(
    lines: Sequence[PlotLine],
    x_title: str,
    y_title: str,
    width: float,
    label: str,
    covered: Sequence[PlotLine] = (),
) -> Markup:
    """Draws lines over a number; a level goes right across. The axes cover `covered` as well."""
    everything = [*lines, *covered]
    numbers = sorted({point.x for line in everything for point in line.points if isinstance(point.x, float)})
    frame = _Frame(everything, width)
    room = (frame.right - frame.left) / max(1, len(numbers))
    at = {number: frame.left + room * (n + 0.5) for n, number in enumerate(numbers)}
    axis = _steps(at, frame, x_title)
    beside = min(4.0, 0.6 * room / max(1, len(lines)))
    marks = Markup("").join(
        _line(line, at, frame.y, beside * (n - (len(lines) - 1) / 2), (frame.left, frame.right))
        for n, line in enumerate(lines)
    )
    return frame.drawing(axis, marks, y_title, label)


class _Frame:
    """The size of a plot and its y scale, which covers all lines with their intervals and limits."""

    top = 24.0

    def __init__(self, lines: Sequence[PlotLine], width: float) -> None:
        self._width, self._height = width, min(440.0, max(280.0, 0.56 * width))
        self.left, self.right, self.bottom = 46.0, width - 10, self._height - 44.0
        spreads = [point.y for line in lines for point in line.points]
        ends = [end for one in spreads for end in (one.low, one.high)] + [at for line in lines for at in line.limits]
        near_zero = min(ends) < 0.4 * max(ends) or min(ends) == max(ends)
        self.y = scale_for(ends, self.bottom, self.top, zero=near_zero)

    def drawing(self, axis: Iterator[Markup], marks: Markup, y_title: str, label: str) -> Markup:
        axes = itertools.chain(axis, y_axis(self.y, self.left, self.right))
        return svg.drawing(self._width, self._height, label, *axes, svg.text(0, 12, y_title, "axis"), marks)


def _steps(at: dict[float, float], frame: _Frame, words: str) -> Iterator[Markup]:
    """An x axis with a tick at each number, labelled where there is room."""
    free = 0.0
    for number, place in at.items():
        written = svg.label_of(number)
        room = svg.width_of(written, 12.0) / 2 + 3
        yield svg.line(place, frame.top, place, frame.bottom, "grid")
        if place - room >= free:
            yield svg.text(place, frame.bottom + 16, written, "tick", "middle")
            free = place + room
    yield svg.line(frame.left, frame.bottom, frame.right, frame.bottom, "zero")
    yield svg.text(frame.right, frame.bottom + 34, words, "axis", "end")


def _line(
    line: PlotLine, x: Scale | dict[float, float], y: Scale, beside: float, across: tuple[float, float] | None = None
) -> Markup:
    """`beside`: the shift to the right that keeps the intervals of several lines apart, in pixels."""
    drawn = []
    places = []
    for point in line.points:
        if isinstance(point.x, float):
            assert isinstance(x, dict)
            at = x[point.x] + beside
        elif isinstance(x, Scale):
            at = x(point.x.value)
            drawn.append(svg.line(x(point.x.low), y(point.y.value), x(point.x.high), y(point.y.value), "interval"))
        else:
            assert across is not None
            return _level(line, point, y(point.y.value), across)
        drawn.append(svg.line(at, y(point.y.low), at, y(point.y.high), "interval"))
        places.append((at, y(point.y.value), point.about))
    if len(places) > 1:
        if line.limits:
            limits = zip(places, line.limits, strict=True)
            drawn.append(svg.path([(at, y(limit)) for (at, _, _), limit in limits], "limit"))
        drawn.append(svg.path([(at, to) for at, to, _ in places], "through"))
    elif across is None:
        drawn += [_name(line.name, at, to, x) for at, to, _ in places]
    for at, to, about in places:
        drawn.append(element("g", svg.title(about), _dot(at, to, 3.5), _dot(at, to, 9.0, "touch")))
    return element("g", *drawn, class_=f"curve {line.class_}")


def _name(name: str, at: float, to: float, x: Scale | dict[float, float]) -> Markup:
    """A name below a point, on the side where there is room."""
    right = isinstance(x, Scale) and at > (x.start + x.end) / 2
    return svg.text(at + (-8 if right else 8), to + 16, name, "level", "end" if right else "start")


def _level(line: PlotLine, point: PlotPoint, height: float, across: tuple[float, float]) -> Markup:
    left, right = across
    return element(
        "g",
        svg.title(point.about),
        svg.line(left, height, right, height, "through"),
        *([svg.text(right, height - 4, line.name, "level", "end")] if line.name else []),
        class_=f"curve {line.class_}",
    )


def _dot(at: float, to: float, radius: float, class_: str | None = None) -> Markup:
    return element("circle", cx=at, cy=to, r=radius, class_=class_)
