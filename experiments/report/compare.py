"""Compares two reports: how the experiments differ, and how much each measure of the second differs from the first.

python ablation_experiments.py --compare A.json B.json
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.report import html, markdown
from experiments.report.document import Document, ReportFiles
from experiments.report.markdown import escaped, listed
from experiments.report.particulars import leaves, plain, short
from experiments.report.schema import Difference, ExperimentReport, Measure, read
from experiments.report.words import Figures, Reading, all_figures, headed, key_measures

STYLES = {"better": "green", "worse": "red"}
INTERVALS = (
    "Differences are the second minus the first; each interval combines the intervals of both. If both reports asked "
    "the same questions, it is wider than necessary."
)


@dataclass(frozen=True)
class ComparisonRow:
    """One measure of one configuration in both reports; `key`: whether it is one of the most important."""

    name: str
    written: Figures
    first: Measure
    second: Measure
    difference: Difference
    key: bool

    @property
    def reading(self) -> Reading:
        return self.written.reading(self.difference)

    def cells(self) -> list[str]:
        first, second = self.written.measure(self.first), self.written.measure(self.second)
        return [headed(self.written), first, second, self.written.change(self.difference), self.reading]


@dataclass(frozen=True)
class Comparison:
    """`remarks`: how the two experiments differ. `configurations`: those that both reports have, by name."""

    first: ExperimentReport
    second: ExperimentReport
    remarks: list[str]
    configurations: dict[str, list[ComparisonRow]]


def compare(first: ExperimentReport, second: ExperimentReport) -> Comparison:
    measured = all_figures(first, second)
    key = key_measures(measured)
    others = {one.name: one for one in second.configurations}
    found = {}
    for one in first.configurations:
        if one.name in others:
            ours, theirs = one.measures, others[one.name].measures
            found[one.name] = [
                ComparisonRow(name, written, ours[name], theirs[name], between(ours[name], theirs[name]), name in key)
                for name, written in measured.items()
                if name in ours and name in theirs
            ]
    return Comparison(first, second, [*remarks(first, second)], found)


def between(first: Measure, second: Measure) -> Difference:
    """The second minus the first; its interval combines both intervals (MOVER; Zou and Donner, 2008)."""
    value = second.value - first.value
    low = value - math.hypot(second.value - second.low, first.high - first.value)
    high = value + math.hypot(second.high - second.value, first.value - first.low)
    return Difference(value, low, high, clear=low > 0 or high < 0)


def remarks(first: ExperimentReport, second: ExperimentReport) -> Iterator[str]:
    """Every difference between the two experiments, in one line each."""
    for what, *both in _facts(first, second):
        if both[0] != both[1]:
            yield f"{what}: {' → '.join('–' if one is None else plain(one) for one in both)}"
    names = [[one.name for one in report.configurations] for report in (first, second)]
    for which, here, there in (("first", *names), ("second", *reversed(names))):
        if only := [name for name in here if name not in there]:
            yield f"only in the {which}: {', '.join(only)}"


def _facts(first: ExperimentReport, second: ExperimentReport) -> Iterator[tuple[str, object, object]]:
    for what in ("name", "questions", "metric", "prompts_sha256"):
        yield f"workload, {what}", getattr(first.workload, what), getattr(second.workload, what)
    for what in ("seed", "repeats", "network", "baseline"):
        yield what, getattr(first, what), getattr(second, what)
    for what in ("git_commit", "machine", "cpu", "cpus", "gpus", "python"):
        yield what, getattr(first.environment, what), getattr(second.environment, what)
    versions = first.environment.versions, second.environment.versions
    for package in dict.fromkeys([*versions[0], *versions[1]]):
        yield package, versions[0].get(package), versions[1].get(package)
    yield from _trees("config", first.config, second.config)
    others = {one.name: one for one in second.configurations}
    for one in first.configurations:
        if one.name in others:
            other = others[one.name]
            yield from _trees(one.name, one.config_overrides, other.config_overrides)
            yield from _trees(f"{one.name}, request", one.request, other.request)


def _trees(what: str, first: dict[str, object], second: dict[str, object]) -> Iterator[tuple[str, object, object]]:
    values = dict(leaves(first)), dict(leaves(second))
    for path in dict.fromkeys([*values[0], *values[1]]):
        yield f"{what}, {'.'.join(path)}", values[0].get(path), values[1].get(path)


# -- shown


def show(first: Path, second: Path, console: Console) -> Comparison:
    """Prints the most important measures, and every other that clearly differs. Raises ConfigError."""
    found = compare(read(first), read(second))
    console.print(f"first: {first}\nsecond: {second}", markup=False, highlight=False)
    for remark in found.remarks:
        console.print(f"not the same, {remark}", style="yellow", markup=False, highlight=False)
    table = Table("", box=None, pad_edge=False)
    for head in ("first", "second", "difference"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("the second is", no_wrap=True)
    for name, lines in found.configurations.items():
        table.add_row(escape(name), style="bold")
        for line in lines:
            if line.key or line.difference.clear:
                table.add_row(f"  {escape(headed(line.written))}", *_short(line), style=STYLES.get(line.reading))
    console.print(table)
    console.print(INTERVALS, style="dim")
    return found


def _short(line: ComparisonRow) -> list[str]:
    """For 80 columns: values without intervals, and a reading only for clear differences."""
    written, reading = line.written, line.reading if line.difference.clear else ""
    both = written.number(line.first.value), written.number(line.second.value)
    return [*both, escape(written.change(line.difference)), reading]


def write(found: Comparison, files: ReportFiles) -> list[Path]:
    """Writes the .md and .html."""
    written = {files.file("md"): to_markdown(found), files.file("html"): to_html(found)}
    for path, text in written.items():
        path.write_text(text)
    return list(written)


def to_markdown(found: Comparison) -> str:
    heads = ["measure", "first", "second", "difference", "the second is"]
    parts = [
        f"# {escaped(found.first.title)}: two reports",
        f"First: {escaped(_named(found.first))}. Second: {escaped(_named(found.second))}. {INTERVALS}",
        *([f"Not the same:\n\n{listed(found.remarks)}"] if found.remarks else []),
    ]
    for name, lines in found.configurations.items():
        rows = [[escaped(cell) for cell in line.cells()] for line in lines]
        parts += [f"## {escaped(name)}", markdown.table(heads, rows, texts=(0, 4))]
    return "\n\n".join(parts) + "\n"


def to_html(found: Comparison) -> str:
    byline = f"first: {_named(found.first)}", f"second: {_named(found.second)}"
    document = Document(f"{found.first.title}: two reports", byline)
    return html.page("compare.html.jinja", document, found=found, intervals=INTERVALS)


def _named(report: ExperimentReport) -> str:
    where = report.environment
    return f"{where.created}, commit {short(where.git_commit)}" if where.git_commit else where.created
