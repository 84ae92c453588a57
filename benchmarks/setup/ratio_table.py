"""Ratios that a benchmark requires, each with its bound, and the table that says which bounds hold."""

import statistics

import msgspec
from rich.table import Table


class RequiredRatio(msgspec.Struct):
    """One ratio in every repeat, and the bound on their median."""

    name: str
    wanted: float
    ratios: list[float]
    at_most: bool = False
    """`wanted` is an upper bound; else a lower one."""

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def holds(self) -> bool:
        return self.median <= self.wanted if self.at_most else self.median >= self.wanted


def table(rows: list[RequiredRatio], title: str) -> Table:
    """One line for each ratio: median and range over the repeats, the bound, and whether the median keeps it."""
    ratios = Table(title=title, title_justify="left")
    ratios.add_column("ratio of", no_wrap=True)
    for head in ("median", "range", "required", "holds"):
        ratios.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        bound = f"{'≤' if row.at_most else '≥'} {row.wanted:.2f}"
        span = f"{min(row.ratios):.3f}-{max(row.ratios):.3f}"
        ratios.add_row(row.name, f"{row.median:.3f}", span, bound, "yes" if row.holds else "NO")
    return ratios
