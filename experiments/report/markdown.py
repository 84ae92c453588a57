"""Renders a report as Markdown. Names, errors and config values are escaped: they are never markup."""

import re
from collections.abc import Container, Iterable, Iterator, Sequence

from experiments.report import sweep_figures, sweep_words
from experiments.report.document import Document, of_experiment
from experiments.report.particulars import changes
from experiments.report.schema import ConfigurationReport, ExperimentReport, ReportTable
from experiments.report.words import Figures, Sentence, all_figures, counted, headed, key_measures


def render(report: ExperimentReport) -> str:
    measured = all_figures(report)
    body = [
        *_sweep(report, measured),
        *(part for one in report.tables for part in _own_table(one)),
        "## Configurations",
        "Each value with the interval that holds 95 % of what other questions of this kind would give.",
        _key_table(report, measured),
        *_contributions(report, measured),
        "## Answers",
        _answers(report),
        *_provenance(report),
        "## Every measure",
        f"Differences are to {escaped(report.baseline)}, paired by question. **Bold**: the interval does not hold 0.",
        *(_all_measures(report, one, measured) for one in report.configurations),
    ]
    return _page(of_experiment(report), body)


def render_document(document: Document) -> str:
    """The plots are the SVG files beside the Markdown file."""
    plots = [
        f"## {escaped(one.title)}\n\n![{escaped(one.title)}]({one.name}.svg)\n\n{escaped(one.note)}"
        for one in document.grids
        if one.panels
    ]
    return _page(document, [*plots, *(part for one in document.tables if one.rows for part in _own_table(one))])


def _page(document: Document, body: Iterable[str]) -> str:
    """What every report begins and ends with, around its body."""
    where = ([escaped(name), escaped(value)] for name, value in document.environment.items())
    parts = [
        f"# {escaped(document.title)}",
        "\n".join(_sentence(one) for one in document.summary),
        *([f"**Warnings**\n\n{listed(document.warnings)}"] if document.warnings else []),
        *body,
        "## Environment",
        table(["", ""], where, (0, 1)),
        "## To measure it again",
        fenced(document.command),
        *(["With this config:", fenced(document.config)] if document.config else []),
    ]
    return "\n\n".join(parts) + "\n"


def _sentence(one: Sentence) -> str:
    points = "".join(f"\n  - {escaped(point)}" for point in one.points)
    return f"- **{escaped(one.lead)}**: {escaped(one.text)}{points}"


def _sweep(report: ExperimentReport, measured: dict[str, Figures]) -> Iterator[str]:
    """The areas, then every point of every curve."""
    if report.sweep is None:
        return
    for name, areas in sweep_words.areas_by_measure(report.sweep).items():
        yield f"## {escaped(headed(measured[name]))} at equal cloud rate"
        yield table(sweep_words.AREA_HEADS, _escaped(sweep_words.area_rows(areas, measured[name])))
    heads, rows = sweep_figures.table(report, report.sweep, measured)
    yield "## Curves"
    yield table(heads, _escaped(rows))


def _escaped(rows: Iterable[Sequence[str]]) -> list[list[str]]:
    """Escapes the first cell of each row, a name; the brackets of the intervals behind it are no markup."""
    return [[escaped(row[0]), *row[1:]] for row in rows]


def _own_table(one: ReportTable) -> Iterator[str]:
    yield f"## {escaped(one.title)}"
    yield table([*map(escaped, one.heads)], ([*map(escaped, row)] for row in one.rows))
    yield escaped(one.note)


def _key_table(report: ExperimentReport, measured: dict[str, Figures]) -> str:
    names = key_measures(measured)
    heads = ["configuration", *(escaped(headed(measured[name])) for name in names)]
    return table(heads, ([escaped(one.name), *(_value(one, name, measured[name]) for name in names)]
                         for one in report.configurations))  # fmt: skip


def _contributions(report: ExperimentReport, measured: dict[str, Figures]) -> Iterator[str]:
    if not report.contributions:
        return
    yield "## What each part contributes"
    rows = []
    for one in report.contributions:
        if one.measure in measured:
            written = measured[one.measure]
            numbers = written.number(one.baseline), written.number(one.without), written.change(one.difference)
            what = [escaped(text) for text in (one.feature, one.configuration, headed(written))]
            rows.append([*what, *numbers, written.reading(one.difference)])
    yield table(
        ["part", "without it", "measure", "with", "without", "difference", "without it is"], rows, texts=(0, 1, 2, 6)
    )


def _answers(report: ExperimentReport) -> str:
    rows = []
    for one in report.configurations:
        overrides = "; ".join(map(str, changes(report, one)))
        state = "nothing differs clearly from the baseline" if one.unchanged else ""
        rows.append([escaped(one.name), escaped(one.description), escaped(overrides) or "none", f"{one.answers:,}",
                     f"{one.failures:,}", escaped(one.first_failure or state)])  # fmt: skip
    return table(["configuration", "what it is", "overrides", "answers", "failures", ""], rows, texts=(0, 1, 2, 5))


def _provenance(report: ExperimentReport) -> Iterator[str]:
    kinds = list(dict.fromkeys(kind for one in report.configurations for kind in one.provenance))
    if not kinds:
        return
    yield "Tokens by provenance:"
    rows = (
        [escaped(one.name), *(f"{one.provenance.get(kind, 0):,}" for kind in kinds)] for one in report.configurations
    )
    yield table(["configuration", *(escaped(kind) for kind in kinds)], rows)


def _all_measures(report: ExperimentReport, one: ConfigurationReport, measured: dict[str, Figures]) -> str:
    rows = []
    for name, written in measured.items():
        if name in one.measures:
            difference = one.differences.get(name)
            change = "" if difference is None else written.change(difference)
            bold = f"**{change}**" if difference and difference.clear else change
            reading = written.reading(difference) if difference else ""
            rows.append([escaped(headed(written)), _value(one, name, written), bold, reading])
    asked = f"{counted(one.answers, 'answer')}. {one.description}".strip()
    return f"### {escaped(one.name)}\n\n{escaped(asked)}\n\n" + table(
        ["measure", "value", "difference", ""], rows, texts=(0, 3)
    )


def _value(one: ConfigurationReport, name: str, written: Figures) -> str:
    found = one.measures.get(name)
    return "–" if found is None else written.measure(found)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: Container[int] = (0,)) -> str:
    """A table of escaped cells; the columns `texts` are aligned left, the others right."""
    rule = ["---" if at in texts else "---:" for at in range(len(heads))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))


def listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escaped(line)}" for line in lines)


def fenced(text: str) -> str:
    """A code block; its fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"


def escaped(text: str) -> str:
    """The text in one line, without any markup."""
    return re.sub(r"([\\`*\[\]<>|#~&]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
