"""Lines over a number, in a grid of panels, as SVG and PNG. Knows nothing of what is drawn, and needs no screen."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


@dataclass(frozen=True)
class SweepLine:
    """`colour` is matplotlib's. `low` and `high` are the ends of error bars; `bound` is a dashed line beside it.

    Any of the three may be empty.
    """

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    bound: Sequence[float] = ()


@dataclass(frozen=True)
class SweepPanel:
    title: str
    lines: Sequence[SweepLine] = field(default_factory=tuple)


def draw(
    file: Path,
    title: str,
    grid: Sequence[Sequence[SweepPanel]],
    x_label: str,
    y_label: str,
    level: float | None = None,
) -> list[Path]:
    """Writes the grid of panels to `file` with .svg and .png; `level` is a grey line across. All share their axes."""
    rows, columns = len(grid), len(grid[0])
    figure = Figure(figsize=(1 + 3.4 * columns, 1.6 + 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panels, places in zip(grid, axes, strict=True):
        for panel, place in zip(panels, places, strict=True):
            place.set_title(panel.title, fontsize=9)
            place.grid(alpha=0.3)
            if level is not None:
                place.axhline(level, color="grey", linewidth=1)
            for line in panel.lines:
                _draw(place, line)
    for place in axes[-1]:
        place.set_xlabel(x_label, fontsize=9)
    handles = {label: h for place in axes.flat for h, label in zip(*place.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.supylabel(y_label, fontsize=9)
    FigureCanvasAgg(figure)
    written = [file.with_suffix(suffix) for suffix in (".svg", ".png")]
    for path in written:
        figure.savefig(path, dpi=130)
    return written


def _draw(place: Axes, line: SweepLine) -> None:
    place.plot(line.x, line.y, marker="o", markersize=3, color=line.colour, label=line.label)
    if line.low:
        place.vlines(line.x, line.low, line.high, color=line.colour, linewidth=1, alpha=0.5)
    if line.bound:
        place.plot(line.x, line.bound, linestyle="--", linewidth=1, alpha=0.7, color=line.colour)
