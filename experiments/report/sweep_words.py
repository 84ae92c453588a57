"""Describes a sweep in sentences, and its areas as a table."""

from collections.abc import Iterator, Mapping, Sequence

from experiments.report import words
from experiments.report.schema import Area, ExperimentReport, SweepDescription
from experiments.report.words import Figures, Sentence, lower

AREA_HEADS = ("curve", "area", "minus the straight line between the ends", "minus the best")


def summary(report: ExperimentReport) -> list[Sentence]:
    """The most important results; those of a sweep come right after the description of the workload."""
    workload, *others = words.summary(report)
    return [workload, *sentences(report, words.all_figures(report)), *others]


def sentences(report: ExperimentReport, measured: Mapping[str, Figures]) -> Iterator[Sentence]:
    if report.sweep is None:
        return
    yield from _best(report.sweep, measured)
    yield from _relative(report, report.sweep, measured)


def _best(sweep: SweepDescription, measured: Mapping[str, Figures]) -> Iterator[Sentence]:
    """The best curve at equal cloud rate, and the curves that are clearly below it."""
    for measure, areas in areas_by_measure(sweep).items():
        written = measured[measure]
        best = next(one for one in areas if one.to_best is None)
        below = [one.series for one in areas if one.to_best and one.to_best.clear]
        text = f"{best.series}, {written.measure(best.area)}, the area under its curve"
        text += f"; {written.change(best.to_line)} to the straight line from {sweep.ends[0]} to {sweep.ends[1]}"
        others = f"clearly lower: {', '.join(below)}" if below else "no other is clearly lower"
        yield Sentence(f"Best {lower(written.info.title)} at equal cloud rate", f"{text}; {others}.")


def _relative(report: ExperimentReport, sweep: SweepDescription, measured: Mapping[str, Figures]) -> Iterator[Sentence]:
    """The throughput of each series with the largest number of clients."""
    by_name = {one.name: one for one in report.configurations}
    for series in sweep.series:
        measures = by_name[series.configurations[-1]].measures
        values = [
            f"{lower(measured[name].info.title)} {measured[name].measure(measures[name])}"
            for name in ("throughput", "over_one_client", "over_cloud_only")
            if name in measures
        ]
        if values:
            yield Sentence(f"{series.name}, {series.at[-1]:g} {lower(sweep.parameter)}", f"{'; '.join(values)}.")


def areas_by_measure(sweep: SweepDescription) -> dict[str, list[Area]]:
    found: dict[str, list[Area]] = {}
    for area in sweep.areas:
        found.setdefault(area.measure, []).append(area)
    return found


def area_rows(areas: Sequence[Area], written: Figures) -> list[list[str]]:
    """Rows in the columns of AREA_HEADS, the best first."""
    return [
        [
            one.series,
            written.measure(one.area),
            written.change(one.to_line),
            "the best" if one.to_best is None else written.change(one.to_best),
        ]
        for one in sorted(areas, key=lambda one: -one.area.value)
    ]
