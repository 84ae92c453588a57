"""Plots lie within their drawing, and their scales, names and shares are right."""

import random
import re

import numpy as np
import pytest

from experiments.report import line_plot, svg
from experiments.report.bar_plots import distributions, stacks
from experiments.report.line_plot import PlotLine, PlotPoint, over_measure, over_number
from experiments.report.scatter_plot import Point, scatter
from experiments.report.schema import Measure
from tests.support.reports.fake_report import KINDS


def test_ticks_are_round_within_the_scale_and_about_as_many_as_wanted() -> None:
    rng = random.Random(0)
    for _ in range(500):
        low = rng.choice([0, rng.uniform(-1e4, 1e4), rng.uniform(0, 1e-3)])
        high = low + 10 ** rng.uniform(-4, 6)
        ticks = svg.Scale(low, high, 0, 100).ticks(5)
        assert 2 <= len(ticks) <= 11
        little = 1e-9 * (abs(low) + high - low)
        assert all(low - little <= tick <= high + little for tick in ticks)
        log = svg.Scale(10 ** rng.uniform(-3, 0), 10 ** rng.uniform(1, 5), 0, 100, log=True)
        assert 2 <= len(log.ticks(5)) <= 12
        assert all(log.low <= tick <= log.high for tick in log.ticks(5))


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [5.0], [0.0, 1e6], [1.0] * 99 + [1e9], [0.001, 1000.0], list(range(1, 50))]
)
def test_a_distribution_lies_within_its_drawing(values: list[float]) -> None:
    for width in (360.0, 940.0):
        drawn = str(distributions({"a": values, "b": [3.0, 4.0]}, "ms", width, "label", str))
        outlines = " ".join(re.findall(r' d="([^"]+)"', drawn))
        places = [float(x) for x in re.findall(r"[ML]([^,]+),", outlines)]
        places += [float(x) for x in re.findall(r' (?:x1|x2|cx)="([^"]+)"', drawn)]
        assert min(places) >= 0
        assert max(places) <= width


def test_names_in_a_scatter_plot_cover_neither_each_other_nor_a_point() -> None:
    rng = random.Random(0)
    for width in (360.0, 940.0):
        points = [point(f"threshold {n}", rng.random(), rng.random()) for n in range(30)]
        drawn = str(scatter(points, "x", "y", width, "label"))
        circles = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4.5"', drawn)]
        assert len(circles) == 30
        names = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="name"( text-anchor="end")?>(.*?)<', drawn)
        assert len(names) > 10
        boxes = []
        for x, y, end, name in names:
            wide = svg.width_of(name, 12)
            left = float(x) - (wide if end else 0)
            boxes.append((left, float(y) - 12, left + wide, float(y) + 3))
        for n, (left, top, right, bottom) in enumerate(boxes):
            assert left >= 0 and right <= width
            assert not any(left < x < right and top < y < bottom for x, y in circles)
            for other in boxes[:n]:
                assert not (left < other[2] and other[0] < right and top + 1 < other[3] and other[1] + 1 < bottom)


def point(name: str, x: float, y: float) -> Point:
    return Point(name, Measure(x, x - 0.01, x + 0.01), Measure(y, y - 0.01, y + 0.01), name)


def test_configurations_at_one_place_are_all_named() -> None:
    drawn = str(scatter([point(name, 0.5, 0.5) for name in "abc"] + [point("d", 1, 1)], "x", "y", 360, "label"))
    assert re.findall(r'class="name".*?>(\w)<', drawn) == ["a", "b", "c", "d"]


def test_shares_of_a_stack_fill_its_width() -> None:
    rng = random.Random(0)
    row = {kind: rng.randint(0, 50) for kind in KINDS}
    drawn = str(stacks({"one": row}, KINDS, 940, "label"))
    widths = [float(width) for width in re.findall(r'<rect .*?width="([\d.]+)"', drawn)]
    shown = [count for count in row.values() if count]
    assert len(widths) == len(shown)
    for width, count in zip(widths, shown, strict=True):
        assert (width + 1) / (sum(widths) + len(widths)) == pytest.approx(count / sum(shown), abs=0.01)


def place(x: float | Measure, y: float) -> PlotPoint:
    return PlotPoint(x, Measure(y, y - 0.1, y + 0.1), "about")


def test_lines_lie_within_their_drawing_in_the_order_of_their_numbers() -> None:
    rng = np.random.default_rng(0)
    for width in (360.0, 940.0):
        lines = [
            PlotLine(f"a{n}", line_plot.class_of(n), [place(float(at), float(rng.random())) for at in (1, 2, 4, 8, 32)])
            for n in range(10)
        ]
        drawn = str(over_number(lines, "x", "y", width, "label"))
        within(drawn, width)
        for path in re.findall(r'<path d="M([^"]+)"', drawn):
            across = [float(step.split(",")[0]) for step in path.split(" L")]
            steps = np.diff(across)
            assert (steps > 0).all() and steps == pytest.approx(steps[0], abs=0.2), "values at equal steps"
        measured = [PlotLine("b", "line-0", [place(Measure(x, x, x), 0.5) for x in (0.0, 0.3, 1.0)])]
        within(
            str(over_measure([*measured, PlotLine("end", "end", measured[0].points[:1])], "x", "y", width, "l")), width
        )


def within(drawn: str, width: float) -> None:
    places = [float(x) for x in re.findall(r' (?:x1|x2|cx|x)="([^"]+)"', drawn)]
    assert places and min(places) >= 0 and max(places) <= width


def test_more_lines_than_colours_can_be_told_apart() -> None:
    assert len({line_plot.class_of(n) for n in range(2 * line_plot.COLOURS)}) == 2 * line_plot.COLOURS
