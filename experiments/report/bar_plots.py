"""Draws distributions, stacks and bars as SVG that the style sheet colours.

The tooltips of the marks say everything that a plot shows. `width` is in CSS pixels. At that width texts have their own
size, so a page has one drawing for a phone and one for a desk.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from experiments.report import svg
from experiments.report.svg import Scale, element, scale_for

SIZE = 12.0
"""Of texts, in pixels."""
NARROW = 500
"""Below this width, the names of rows stand above them instead of beside them."""
LOG_FROM = 20.0
"""The scale is logarithmic if the largest median exceeds the smallest by this factor."""
BAR = 20.0
FEW = 20
"""Fewer values than this are drawn as dots: too few for a density."""
SHOWN = 0.99
"""The share of values that a distribution shows, so that a stalled answer does not compress all others."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
Numbers = npt.NDArray[np.float64]


class Spread(Protocol):
    """A value and its interval."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True)
class Bar:
    """A bar from 0 with an interval; `class_` colours it, `written` is its value as text."""

    name: str
    spread: Spread
    written: str
    class_: str


# -- distributions


def distributions(
    rows: Mapping[str, Sequence[float]], x_title: str, width: float, label: str, written: Callable[[float], str]
) -> Markup:
    """Draws a row for each name, which needs at least one value: the density, and a box of the quantiles below it.

    The thin line runs from the 5th to the 95th percentile, the thick one from the first to the third quartile; the dot
    is the median. The density is Gaussian with Silverman's bandwidth, and its peak is equally high in every row.
    """
    spans = {name: quantiles(values) for name, values in rows.items()}
    medians, lowest = [span[2] for span in spans.values()], min(min(values) for values in rows.values())
    log = lowest > 0 and max(medians) > LOG_FROM * min(medians)
    rows_at = Rows(list(rows), width, 46.0)
    farthest = [float(np.quantile(values, SHOWN)) for values in rows.values()]
    x = scale_for([lowest if log else 0.0, *farthest], rows_at.left, width - 14, log=log)
    drawn = list(x_axis(x, 4, rows_at.bottom, x_title, int((width - rows_at.left) / 80)))
    for name, top in rows_at.places():
        drawn.append(rows_at.name(name, top + 14))
        drawn.append(_distribution(np.asarray(rows[name]), spans[name], x, top, name, written))
    return svg.drawing(width, rows_at.bottom + 40, label, *drawn)


def quantiles(values: Sequence[float]) -> Numbers:
    """The QUANTILES of the values."""
    return np.asarray(np.quantile(values, QUANTILES), dtype=np.float64)


def _distribution(
    values: Numbers,
    span: Numbers,
    x: Scale,
    top: float,
    name: str,
    written: Callable[[float], str],
) -> Markup:
    low, first, middle, last, high = (x(value) for value in span)
    about = f"{name}: median {written(span[2])}, half of all from {written(span[1])} to {written(span[3])}, "
    about += f"9 of 10 from {written(span[0])} to {written(span[4])}; {len(values)} answers"
    floor = top + 26.0
    places = np.array([x(value) for value in values])
    return element(
        "g",
        svg.title(about),
        *(_density(places, floor, 22.0, x) if len(places) >= FEW else _dots(places, floor, x)),
        svg.line(low, floor + 7, high, floor + 7, "whisker"),
        svg.line(first, floor + 7, last, floor + 7, "quarters"),
        element("circle", cx=middle, cy=floor + 7, r=3.5, class_="median"),
        element("rect", x=x.start, y=top, width=x.end - x.start, height=46.0, class_="touch"),
        class_="distribution",
    )


def _density(places: Numbers, floor: float, height: float, x: Scale) -> Iterator[Markup]:
    """The density of the coordinates, so that it is one on a log scale too."""
    quarters = np.quantile(places, (0.25, 0.75))
    spread = min(places.std(), (quarters[1] - quarters[0]) / 1.34 or places.std())
    bandwidth = max(2.0, 0.9 * spread * len(places) ** -0.2)
    grid = np.linspace(max(x.start, places.min() - 3 * bandwidth), min(x.end, places.max() + 3 * bandwidth), 90)
    density = np.exp(-(((grid[:, None] - places) / bandwidth) ** 2) / 2).sum(axis=1)
    outline = zip(grid, floor - height * density / density.max(), strict=True)
    yield svg.path([(grid[0], floor), *outline, (grid[-1], floor)], "density", closed=True)


def _dots(places: Numbers, floor: float, x: Scale) -> Iterator[Markup]:
    for place in places[places <= x.end]:
        yield element("circle", cx=float(place), cy=floor - 6, r=4.0, class_="density")


# -- bars


def stacks(rows: Mapping[str, Mapping[str, int]], kinds: Sequence[str], width: float, label: str) -> Markup:
    """Draws a bar of equal length for each name: the share of each kind, in the order of `kinds`, and the total."""
    rows_at = Rows(list(rows), width, 30.0)
    x = Scale(0, 1, rows_at.left, width - 74)
    drawn = []
    for name, top in rows_at.places():
        total = sum(rows[name].values())
        drawn.append(rows_at.name(name, top + 15))
        drawn.append(svg.text(width, top + 15, f"{total:,}".replace(",", "\u202f"), "number", "end"))
        begin = 0.0
        for kind in kinds:
            share = rows[name].get(kind, 0) / total if total else 0
            if share:
                drawn.append(_segment(kind, name, rows[name][kind], share, x(begin), x(begin + share), top))
            begin += share
    return svg.drawing(width, rows_at.bottom, label, *drawn)


def _segment(kind: str, name: str, number: int, share: float, left: float, right: float, top: float) -> Markup:
    percent = f"{100 * share:.0f} %"
    return element(
        "g",
        svg.title(f"{name}: {number:,} {kind}, {100 * share:.1f} %"),
        element("rect", x=left, y=top, width=max(0.5, right - left - 1), height=BAR, class_="bar"),
        *([svg.text((left + right) / 2, top + 14, percent, "share", "middle")] if right - left > 38 else []),
        class_=f"kind {kind}",
    )


def bars(rows: Sequence[Bar], width: float, label: str) -> Markup:
    """Draws bars from 0 with their intervals, one below the other, each followed by its value."""
    written = max(svg.width_of(bar.written, SIZE) for bar in rows)
    names = max(svg.width_of(bar.name, SIZE) for bar in rows) + 8
    ends = [end for bar in rows for end in (bar.spread.low, bar.spread.high, bar.spread.value)]
    x = scale_for(ends, names, width - written - 6)
    drawn = [svg.line(x(0), 0, x(0), 30.0 * len(rows) - 6, "zero")]
    for n, bar in enumerate(rows):
        drawn += _bar(bar, x, 30.0 * n + 2, width)
    return svg.drawing(width, 30.0 * len(rows), label, *drawn)


def _bar(bar: Bar, x: Scale, top: float, width: float) -> Iterator[Markup]:
    left, right = sorted((x(0), x(bar.spread.value)))
    middle = top + BAR / 2
    yield svg.text(0, middle + 4, bar.name, "name")
    yield element("rect", x=left, y=top, width=max(1.0, right - left), height=BAR, class_=f"bar {bar.class_}")
    yield svg.line(x(bar.spread.low), middle, x(bar.spread.high), middle, "interval")
    for end in (bar.spread.low, bar.spread.high):
        yield svg.line(x(end), middle - 4, x(end), middle + 4, "interval")
    yield svg.text(width, middle + 4, bar.written, "number", "end")


# -- rows and axes


class Rows:
    """The layout of rows with names: beside the rows, or above them where there is no room."""

    def __init__(self, names: Sequence[str], width: float, height: float) -> None:
        longest = max((svg.width_of(name, SIZE) for name in names), default=0)
        self._names, self._above = names, width < NARROW
        self.left = 0.0 if self._above else min(longest, 0.3 * width) + 12
        self._room = (width if self._above else self.left - 12) + 0.01
        self._step = height + (20 if self._above else 0)
        self.bottom = 6 + self._step * len(names)

    def places(self) -> Iterator[tuple[str, float]]:
        """Each name, and the y of the top of its row."""
        for n, name in enumerate(self._names):
            yield name, 6 + self._step * n + (20 if self._above else 0)

    def name(self, name: str, middle: float) -> Markup:
        y = middle - 21 if self._above else middle
        return svg.text(0, y, svg.shortened(name, self._room, SIZE), "name")


def x_axis(x: Scale, top: float, bottom: float, words: str, ticks: int) -> Iterator[Markup]:
    for tick in x.ticks(ticks):
        yield svg.line(x(tick), top, x(tick), bottom, "grid")
        yield svg.text(x(tick), bottom + 16, svg.label_of(tick), "tick", "middle")
    yield svg.line(x.start, bottom, x.end, bottom, "zero")
    yield svg.text(x.end, bottom + 34, words, "axis", "end")


def y_axis(y: Scale, left: float, right: float) -> Iterator[Markup]:
    for tick in y.ticks(5):
        yield svg.line(left, y(tick), right, y(tick), "grid")
        yield svg.text(left - 6, y(tick) + 4, svg.label_of(tick), "tick", "end")
