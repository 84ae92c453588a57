"""Lines through points with intervals, as SVG that a page's style sheet colours. Knows numbers, and no report.

Over a number of its own each line has its points at equal steps, one for each value there is: thresholds crowd and
clients double, and both are read so. Over a measure points lie where they are measured.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from experiments.report import svg
from experiments.report.bar_plots import Spread, x_axis, y_axis
from experiments.report.svg import Scale, element, scale_for

COLOURS = 8
"""Lines have the classes line-0 to line-7; further ones begin again, broken."""


@dataclass(frozen=True)
class PlotPoint:
    """A point of a line; `x` is a number of its own, or a measure; `about`: all of it in words."""

    x: float | Spread
    y: Spread
    about: str


@dataclass(frozen=True)
class PlotLine:
    """`class_` colours it; the line goes through its places in their order. One of a single place is named there."""

    name: str
    class_: str
    places: Sequence[PlotPoint]


def class_of(number: int) -> str:
    return f"line-{number % COLOURS}" + (" broken" if number >= COLOURS else "")


def over_measure(lines: Sequence[PlotLine], x_title: str, y_title: str, width: float, label: str) -> Markup:
    """Lines over a measure, with both intervals of each point."""
    spreads = [place.x for line in lines for place in line.places if not isinstance(place.x, float)]
    frame = _Frame(lines, width)
    x = scale_for([end for one in spreads for end in (one.low, one.high)], frame.left, frame.right)
    axis = x_axis(x, frame.top, frame.bottom, x_title, int(width / 90))
    marks = Markup("").join(_line(line, x, frame.y, 0.0) for line in lines)
    return frame.drawing(axis, marks, y_title, label)


def over_number(lines: Sequence[PlotLine], x_title: str, y_title: str, width: float, label: str) -> Markup:
    """Lines over their own number; a line of one place that has none goes right across, as a level."""
    numbers = sorted({place.x for line in lines for place in line.places if isinstance(place.x, float)})
    frame = _Frame(lines, width)
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
    """The place of a plot, and its scale of what all lines have there."""

    top = 24.0

    def __init__(self, lines: Sequence[PlotLine], width: float) -> None:
        self._width, self._height = width, min(440.0, max(280.0, 0.56 * width))
        self.left, self.right, self.bottom = 46.0, width - 10, self._height - 44.0
        spreads = [place.y for line in lines for place in line.places]
        ends = [end for one in spreads for end in (one.low, one.high)]
        near_zero = min(ends) < 0.4 * max(ends) or min(ends) == max(ends)
        self.y = scale_for(ends, self.bottom, self.top, zero=near_zero)

    def drawing(self, axis: Iterator[Markup], marks: Markup, y_title: str, label: str) -> Markup:
        axes = itertools.chain(axis, y_axis(self.y, self.left, self.right))
        return svg.drawing(self._width, self._height, label, *axes, svg.text(0, 12, y_title, "axis"), marks)


def _steps(at: dict[float, float], frame: _Frame, words: str) -> Iterator[Markup]:
    """An axis with a tick at each number, and the number where there is room for it."""
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
    """`beside`: how far to the right all of it is moved, so that intervals of several lines can be told apart."""
    drawn = []
    places = []
    for place in line.places:
        if isinstance(place.x, float):
            assert isinstance(x, dict)
            at = x[place.x] + beside
        elif isinstance(x, Scale):
            at = x(place.x.value)
            drawn.append(svg.line(x(place.x.low), y(place.y.value), x(place.x.high), y(place.y.value), "interval"))
        else:
            assert across is not None
            return _level(line, place, y(place.y.value), across)
        drawn.append(svg.line(at, y(place.y.low), at, y(place.y.high), "interval"))
        places.append((at, y(place.y.value), place.about))
    if len(places) > 1:
        drawn.append(svg.path([(at, to) for at, to, _ in places], "through"))
    elif across is None:
        drawn += [_name(line.name, at, to, x) for at, to, _ in places]
    for at, to, about in places:
        drawn.append(element("g", svg.title(about), _dot(at, to, 3.5), _dot(at, to, 9.0, "touch")))
    return element("g", *drawn, class_=f"curve {line.class_}")


def _name(name: str, at: float, to: float, x: Scale | dict[float, float]) -> Markup:
    """Below a place, on the side where there is room."""
    right = isinstance(x, Scale) and at > (x.start + x.end) / 2
    return svg.text(at + (-8 if right else 8), to + 16, name, "level", "end" if right else "start")


def _level(line: PlotLine, place: PlotPoint, height: float, across: tuple[float, float]) -> Markup:
    left, right = across
    return element(
        "g",
        svg.title(place.about),
        svg.line(left, height, right, height, "through"),
        svg.text(right, height - 4, line.name, "level", "end"),
        class_=f"curve {line.class_}",
    )


def _dot(at: float, to: float, radius: float, class_: str | None = None) -> Markup:
    return element("circle", cx=at, cy=to, r=radius, class_=class_)
