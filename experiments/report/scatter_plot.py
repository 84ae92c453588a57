"""Draws a scatter plot with intervals and names, as SVG that the style sheet colours."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from experiments.report import svg
from experiments.report.bar_plots import SIZE, Spread, x_axis, y_axis
from experiments.report.svg import Scale, element, scale_for


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot; `about` describes it in words. One point may be marked."""

    name: str
    x: Spread
    y: Spread
    about: str
    marked: bool = False


def scatter(points: Sequence[Point], x_title: str, y_title: str, width: float, label: str) -> Markup:
    """Draws points with both intervals and their names; points that lie together share a block of names."""
    height = min(440.0, max(300.0, 0.56 * width))
    left, bottom = 46.0, height - 44.0
    x = scale_for([end for p in points for end in (p.x.low, p.x.high)], left, width - 10)
    y = scale_for([end for p in points for end in (p.y.low, p.y.high)], bottom, 24, zero=False)
    axes = itertools.chain(x_axis(x, 24, bottom, x_title, int(width / 90)), y_axis(y, left, width - 10))
    marks = Markup("").join(_mark(point, x, y) for point in sorted(points, key=lambda point: point.marked))
    names = Markup("").join(_names(points, x, y, (left + 2, 24, width - 2, bottom - 2)))
    return svg.drawing(width, height, label, *axes, svg.text(0, 12, y_title, "axis"), marks, names)


def _mark(point: Point, x: Scale, y: Scale) -> Markup:
    at, to = x(point.x.value), y(point.y.value)
    return element(
        "g",
        svg.title(point.about),
        svg.line(x(point.x.low), to, x(point.x.high), to, "interval"),
        svg.line(at, y(point.y.low), at, y(point.y.high), "interval"),
        element("circle", cx=at, cy=to, r=5.5 if point.marked else 4.5),
        element("circle", cx=at, cy=to, r=14.0, class_="touch"),
        class_="mark marked" if point.marked else "mark",
    )


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _names(points: Sequence[Point], x: Scale, y: Scale, inside: Box) -> Iterator[Markup]:
    """A block of names for each group of points, at the first side where it covers nothing; without room, none."""
    places = [(x(p.x.value), y(p.y.value)) for p in points]
    taken = [(at - 6, to - 6, at + 6, to + 6) for at, to in places]
    for group in _together(points, places):
        at, to = places[group[0]]
        group.sort(key=lambda n: places[n][1])
        names = [points[n].name for n in group]
        room = max(svg.width_of(name, SIZE) for name in names)
        for left, top in _sides(at, to, room, 15.0 * len(names)):
            box = left, top, left + room, top + 15 * len(names)
            if _within(box, inside) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                anchor, begin = ("end", left + room) if left + room < at else ("start", left)
                for n, name in enumerate(names):
                    class_ = "name marked" if points[group[n]].marked else "name"
                    yield svg.text(begin, top + 12 + 15 * n, name, class_, anchor)
                break


def _together(points: Sequence[Point], places: Sequence[tuple[float, float]]) -> list[list[int]]:
    """Groups the indices of points that lie within 12 pixels; the group of the marked point comes first."""
    groups: list[list[int]] = []
    for n in sorted(range(len(points)), key=lambda n: not points[n].marked):
        near = (g for g in groups if abs(places[n][0] - places[g[0]][0]) + abs(places[n][1] - places[g[0]][1]) < 12)
        group = next(near, None)
        if group is None:
            groups.append([n])
        else:
            group.append(n)
    return groups


def _sides(at: float, to: float, wide: float, high: float) -> Iterator[tuple[float, float]]:
    """Possible top left corners of a block beside a point: diagonal ones first, where no interval runs."""
    for gap in (7.0, 15.0):
        for top in (to - gap - high + 4, to + gap - 4):
            yield from ((at + gap, top), (at - gap - wide, top))
        yield from ((at + gap, to - high / 2), (at - gap - wide, to - high / 2))
    yield from ((at - wide / 2, to - 10 - high), (at - wide / 2, to + 10))


def _within(box: Box, other: Box) -> bool:
    return box[0] >= other[0] and box[1] >= other[1] and box[2] <= other[2] and box[3] <= other[3]


def _overlap(box: Box, other: Box) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
