"""A sweep in sentences, and its areas as a table. Knows no format to write in."""

from collections.abc import Iterator, Mapping, Sequence

from experiments.report import words
from experiments.report.schema import Area, ExperimentReport, SweepDescription
from experiments.report.words import Figures, Sentence, lower

AREA_HEADS = ("curve", "area", "less the straight line between the ends", "less the best")


def summary(report: ExperimentReport) -> list[Sentence]:
    """What a reader should know who reads nothing else; what a sweep has found comes right after what was asked."""
    asked, *others = words.summary(report)
    return [asked, *sentences(report, words.all_figures(report)), *others]


def sentences(report: ExperimentReport, measured: Mapping[str, Figures]) -> Iterator[Sentence]:
    if report.sweep is None:
        return
    yield from _best(report.sweep, measured)
    yield from _relative(report, report.sweep, measured)


def _best(sweep: SweepDescription, measured: Mapping[str, Figures]) -> Iterator[Sentence]:
    """Which curve is the best at equal cloud rate, and whether that is clear."""
    for measure, areas in areas_by_measure(sweep).items():
        written = measured[measure]
        best = next(one for one in areas if one.to_best is None)
        below = [one.series for one in areas if one.to_best and one.to_best.clear]
        told = f"{best.series}, {written.measure(best.area)}, the area under its curve"
        told += f"; {written.change(best.to_line)} to the straight line from {sweep.ends[0]} to {sweep.ends[1]}"
        others = f"clearly less have {', '.join(below)}" if below else "no other has clearly less"
        yield Sentence(f"Best {lower(written.info.title)} at equal cloud rate", f"{told}; {others}.")


def _relative(report: ExperimentReport, sweep: SweepDescription, measured: Mapping[str, Figures]) -> Iterator[Sentence]:
    """What the largest number of clients gets, of each series."""
    by_name = {one.name: one for one in report.configurations}
    for series in sweep.series:
        found = by_name[series.configurations[-1]].measures
        told = [
            f"{lower(measured[name].info.title)} {measured[name].measure(found[name])}"
            for name in ("throughput", "over_one_client", "over_cloud_only")
            if name in found
        ]
        if told:
            yield Sentence(f"{series.name}, {series.at[-1]:g} {lower(sweep.parameter)}", f"{'; '.join(told)}.")


def areas_by_measure(sweep: SweepDescription) -> dict[str, list[Area]]:
    found: dict[str, list[Area]] = {}
    for area in sweep.areas:
        found.setdefault(area.measure, []).append(area)
    return found


def area_rows(areas: Sequence[Area], written: Figures) -> list[list[str]]:
    """In the columns of AREA_HEADS, the best first."""
    return [
        [
            one.series,
            written.measure(one.area),
            written.change(one.to_line),
            "the best" if one.to_best is None else written.change(one.to_best),
        ]
        for one in sorted(areas, key=lambda one: -one.area.value)
    ]
