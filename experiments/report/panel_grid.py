"""Line plots of one measure in a grid of panels with common axes and one legend: for a page, and as an SVG file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from markupsafe import Markup

from experiments.report import svg
from experiments.report.line_plot import PlotLine, over_number
from experiments.report.svg import element

WIDTH, HEIGHT = 360.0, 280.0
"""Size of a panel in CSS pixels: as wide as a phone, and three of them beside each other on a desk."""
GAP, LINE = 24.0, 20.0
"""Of an SVG file, in pixels: between panels, and from one line of text to the next."""


@dataclass(frozen=True)
class GridPanel:
    title: str
    lines: Sequence[PlotLine]


@dataclass(frozen=True)
class PanelGrid:
    """One measure in panels, `columns` of them in a row where there is room. `name` is that of the SVG file."""

    name: str
    title: str
    note: str
    x_title: str
    y_title: str
    columns: int
    panels: Sequence[GridPanel]

    @cached_property
    def drawings(self) -> list[tuple[str, Markup]]:
        """The title and the drawing of each panel. The legend alone names the levels: a panel has no room for it."""
        everything = [line for panel in self.panels for line in panel.lines]
        titles = f"{self.x_title} →", f"↑ {self.y_title}"
        found = []
        for panel in self.panels:
            lines = [replace(line, name="") if line.is_level else line for line in panel.lines]
            label = f"{self.title}: {panel.title}"
            found.append((panel.title, over_number(lines, *titles, WIDTH, label, everything)))
        return found

    @property
    def legend(self) -> list[tuple[str, str]]:
        """The name and the classes of each line."""
        lines = [line for panel in self.panels for line in panel.lines]
        return list(dict.fromkeys((line.name, f"curve {line.class_}") for line in lines))


def write(grid: PanelGrid, folder: Path) -> Path:
    """Writes NAME.svg."""
    file = folder / f"{grid.name}.svg"
    file.write_text(drawn_alone(grid))
    return file


def drawn_alone(grid: PanelGrid) -> str:
    """All panels in one SVG that brings its own style sheet: title, legend, panels."""
    columns = max(1, min(grid.columns, len(grid.drawings)))
    width = columns * (WIDTH + GAP) + GAP
    legend, bottom = _legend(grid, width)
    inside = [svg.text(GAP, 30.0, grid.title, "heading"), *legend]
    for n, (title, drawing) in enumerate(grid.drawings):
        left = GAP + n % columns * (WIDTH + GAP)
        top = bottom + n // columns * (HEIGHT + LINE + GAP)
        inside.append(svg.text(left, top + 12, title, "subheading"))
        inside.append(element("svg", drawing, x=left, y=top + LINE, width=WIDTH, height=HEIGHT))
    rows = -(-len(grid.drawings) // columns)
    return svg.file(width, bottom + rows * (HEIGHT + LINE + GAP), grid.title, *inside)


def _legend(grid: PanelGrid, width: float) -> tuple[list[Markup], float]:
    """The legend in as many lines as it takes, and where the panels begin below it."""
    drawn = []
    left, top = GAP, 52.0
    for name, classes in grid.legend:
        room = 26 + svg.width_of(name, 12.0) + 12
        if left + room > width and left > GAP:
            left, top = GAP, top + LINE
        stroke = svg.path([(left, top - 4), (left + 20, top - 4)], "through")
        drawn.append(element("g", stroke, class_=classes))
        drawn.append(svg.text(left + 26, top, name))
        left += room
    return drawn, top + LINE
