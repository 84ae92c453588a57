"""Renders a report as one HTML page without scripts, fonts or network access.

document.html.jinja is the page; report.html.jinja and compare.html.jinja extend it. Jinja escapes all texts.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.report import figures as plots
from experiments.report import particulars, sweep_figures, sweep_words, words
from experiments.report.document import Document, of_experiment
from experiments.report.schema import ConfigurationReport, ExperimentReport
from experiments.report.words import Figures

FAILURES_SHOWN = 20


@dataclass(frozen=True)
class MeasureCell:
    """A measure of a configuration, and its difference to the baseline: alone, with its interval, as a reading."""

    measure: str
    value: str
    interval: str = ""
    signed: str = ""
    change: str = ""
    reading: str = ""


def render(report: ExperimentReport) -> str:
    measured = words.all_figures(report)
    key = words.key_measures(measured)
    return page(
        "report.html.jinja",
        of_experiment(report),
        report=report,
        trade=plots.trade(report, measured),
        curves=list(sweep_figures.figures(report, measured)),
        lines=sweep_figures.legend(report.sweep) if report.sweep else [],
        areas=areas(report, measured),
        points=sweep_figures.table(report, report.sweep, measured) if report.sweep else None,
        charts=[*map(plots.chart, report.charts)],
        panels=plots.panels(report, measured),
        heads=[measured[name].info for name in key],
        table=[(one, [cell(one, name, measured[name]) for name in key]) for one in report.configurations],
        latencies=plots.latencies(report),
        provenance=plots.provenance(report),
        area_heads=sweep_words.AREA_HEADS,
        sections=[
            (one, particulars.changes(report, one), [cell(one, name, measured[name]) for name in measured])
            for one in report.configurations
        ],
        failures=[(name, row) for name, rows in report.rows.items() for row in rows if row.error][:FAILURES_SHOWN],
    )


def render_document(document: Document) -> str:
    return page("document.html.jinja", document)


def page(template: str, document: Document, **values: Any) -> str:
    """Renders a template of this folder; every text is escaped."""
    return _environment().get_template(template).render(document=document, **values)


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def areas(report: ExperimentReport, measured: dict[str, Figures]) -> list[tuple[str, list[list[str]]]]:
    """For each measure that has areas: its title, and their rows."""
    by_measure = sweep_words.areas_by_measure(report.sweep) if report.sweep else {}
    return [
        (words.headed(measured[name]), sweep_words.area_rows(found, measured[name]))
        for name, found in by_measure.items()
    ]


def cell(one: ConfigurationReport, name: str, written: Figures) -> MeasureCell:
    found, difference = one.measures.get(name), one.differences.get(name)
    if found is None:
        return MeasureCell(words.headed(written), "–")
    value = words.headed(written), written.number(found.value), written.interval(found.low, found.high)
    if difference is None:
        return MeasureCell(*value)
    return MeasureCell(
        *value, written.signed(difference.value), written.change(difference), written.reading(difference)
    )
