"""A report as one HTML page that needs nothing else: no script, no font, no network. Knows only the report.

The page itself is ablation_report.html.jinja beside this file, with its style sheet; there texts are escaped.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments import ablation_figures as plots
from experiments import ablation_words as words
from experiments.ablation_report import Configuration, Report
from experiments.ablation_words import Figures

FAILURES_SHOWN = 20


@dataclass(frozen=True)
class Cell:
    """A measure of a configuration, and its difference to the baseline: alone, with its interval, in a word."""

    measure: str
    value: str
    interval: str = ""
    signed: str = ""
    change: str = ""
    reading: str = ""


def render(report: Report) -> str:
    measured = words.all_figures(report)
    key = words.key_measures(measured)
    return page(
        "ablation_report.html.jinja",
        report=report,
        summary=words.summary(report),
        trade=plots.trade(report, measured),
        panels=plots.panels(report, measured),
        heads=[measured[name].info for name in key],
        table=[(one, [cell(one, name, measured[name]) for name in key]) for one in report.configurations],
        latencies=plots.latencies(report),
        provenance=plots.provenance(report),
        sections=[
            (one, words.changes(report, one), [cell(one, name, measured[name]) for name in measured])
            for one in report.configurations
        ],
        failures=[(name, row) for name, rows in report.rows.items() for row in rows if row.error][:FAILURES_SHOWN],
        environment=words.environment(report),
        command=words.command(report),
        commit=words.short(report.environment.git_commit or ""),
        config=msgspec.yaml.encode(report.config).decode(),
    )


def page(template: str, **filled: Any) -> str:
    """A template of this folder, filled in; every text is escaped."""
    return _environment().get_template(template).render(filled)


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def cell(one: Configuration, name: str, written: Figures) -> Cell:
    found, difference = one.measures.get(name), one.differences.get(name)
    if found is None:
        return Cell(words.headed(written), "–")
    value = words.headed(written), written.number(found.value), written.interval(found.low, found.high)
    if difference is None:
        return Cell(*value)
    return Cell(*value, written.signed(difference.value), written.change(difference), written.reading(difference))
