"""Describes a report in numbers and sentences: digits, differences, and the contribution of each part.

Every sentence is computed from the report; a measure that the report lacks is left out.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from experiments.report.schema import (
    Contribution,
    Difference,
    ExperimentReport,
    Measure,
    MeasureInfo,
)

QUALITY, CLOUD_RATE, SUCCESS = "quality", "cloud_rate", "success_rate"
KEY_MEASURES = (
    QUALITY, CLOUD_RATE, "cloud_computed", "latency_p50_ms", "first_token_p50_ms", "tokens_per_second", "cloud_calls",
    "acceptance_rate", "bytes_up", "throughput", "over_one_client", "over_cloud_only",
    "cloud_layer_share", "bytes", "reduction", "total_ms", "cloud_ms", "edge_ms", "communication_ms",
)  # fmt: skip
"""The columns of the first table, as far as they were measured."""
FOUND = "Found"
"""The lead of an experiment's own findings."""

Reading = Literal["better", "worse", "differs", "no clear difference"]


# -- figures


@dataclass(frozen=True)
class Figures:
    """The format of one measure: all its values have the same number of decimals, so that they align."""

    info: MeasureInfo
    decimals: int

    def number(self, value: float) -> str:
        """With a narrow space between thousands and a true minus sign, but no minus before a zero."""
        written = f"{value:,.{self.decimals}f}".replace(",", "\u202f")
        if not any(digit in written for digit in "123456789"):
            written = written.removeprefix("-")
        return written.replace("-", "−")

    def signed(self, value: float) -> str:
        written = self.number(value)
        return f"+{written}" if value > 0 and written != self.number(0) else written

    def interval(self, low: float, high: float) -> str:
        return f"[{self.number(low)},\u00a0{self.number(high)}]"

    def measure(self, measure: Measure) -> str:
        return f"{self.number(measure.value)} {self.interval(measure.low, measure.high)}"

    def change(self, difference: Difference) -> str:
        return f"{self.signed(difference.value)} {self.interval(difference.low, difference.high)}"

    def reading(self, difference: Difference) -> Reading:
        """Whether the difference is an improvement; only a clear difference is better or worse."""
        if not difference.clear:
            return "no clear difference"
        if self.info.better == "neither":
            return "differs"
        return "better" if (difference.value > 0) == (self.info.better == "higher") else "worse"


def figures(reports: Iterable[ExperimentReport], name: str) -> Figures:
    """Three digits of the largest value, at most three decimals; two digits if all values are below 0.01."""
    found = [
        (report.measures[name], abs(configuration.measures[name].value))
        for report in reports
        for configuration in report.configurations
        if name in configuration.measures
    ]
    largest = max(value for _, value in found) or 1.0
    power = math.floor(math.log10(largest)) if largest != 1 else -1
    return Figures(found[0][0], 1 - power if power < -2 else min(3, max(0, 2 - power)))


def all_figures(*reports: ExperimentReport) -> dict[str, Figures]:
    """For each measure that all reports define and any configuration has, in the order of the first report."""
    common = [name for name in reports[0].measures if all(name in report.measures for report in reports)]
    measured = {name for report in reports for one in report.configurations for name in one.measures}
    return {name: figures(reports, name) for name in common if name in measured}


def key_measures(measured: Mapping[str, Figures]) -> list[str]:
    """The columns of the first table; without any KEY_MEASURES, the first six measures."""
    return [name for name in KEY_MEASURES if name in measured] or list(measured)[:6]


# -- sentences


@dataclass(frozen=True)
class Sentence:
    """`lead` is its subject, which may be emphasized; `points` are listed below it."""

    lead: str
    text: str
    points: Sequence[str] = ()

    def __str__(self) -> str:
        """For a console, without markup: each point on its own line."""
        return "\n  ".join([f"{self.lead}: {self.text}", *self.points])


def summary(report: ExperimentReport) -> list[Sentence]:
    """The most important results, after the description of the workload."""
    measured = all_figures(report)
    findings = [Sentence(FOUND, "", report.findings)] if report.findings else []
    return [
        workload(report),
        *findings,
        *_trade(report, measured),
        *_parts(report, measured),
        *_unchanged(report),
        *failed(report),
    ]


def workload(report: ExperimentReport) -> Sentence:
    """The number of questions, repeats, configurations and failures."""
    configurations, work = report.configurations, report.workload
    answers, failures = sum(one.answers for one in configurations), sum(one.failures for one in configurations)
    repeats, configured = counted(report.repeats, "repeat"), counted(len(configurations), "configuration")
    text = f"{counted(work.questions, 'question')} ({work.name}), {repeats}, {configured}"
    return Sentence("Asked", f"{text}. Of {answers + failures:,} answers {failures or 'none'} failed.")


def _trade(report: ExperimentReport, measured: Mapping[str, Figures]) -> Iterator[Sentence]:
    """Quality and cloud rate of the baseline, of the highest quality and of the lowest cloud rate."""
    if QUALITY not in measured or CLOUD_RATE not in measured:
        return
    quality, rate = measured[QUALITY], measured[CLOUD_RATE]
    both = [one for one in report.configurations if QUALITY in one.measures and CLOUD_RATE in one.measures]
    best = max(both, key=lambda one: (one.measures[QUALITY].value, -one.measures[CLOUD_RATE].value), default=None)
    cheapest = min(both, key=lambda one: (one.measures[CLOUD_RATE].value, -one.measures[QUALITY].value), default=None)
    for one in both:
        roles = [
            *(["the baseline"] if one.name == report.baseline != "baseline" else []),
            *([f"highest {lower(quality.info.title)}"] if one is best else []),
            *([f"lowest {lower(rate.info.title)}"] if one is cheapest else []),
        ]
        if roles or one.name == report.baseline:
            yield Sentence(
                ", ".join([one.name, *roles]),
                f"{lower(headed(quality))} {quality.measure(one.measures[QUALITY])}, "
                f"{lower(headed(rate))} {rate.measure(one.measures[CLOUD_RATE])}.",
            )


def _parts(report: ExperimentReport, measured: Mapping[str, Figures]) -> Iterator[Sentence]:
    """One sentence for each part and each configuration without it."""
    contributions = [one for one in report.contributions if one.measure in measured]
    for (feature, name), each in groupby(contributions, key=lambda one: (one.feature, one.configuration)):
        yield Sentence(feature, f"without it ({name})", [contributed(one, measured[one.measure]) for one in each])


def contributed(one: Contribution, written: Figures) -> str:
    """The effect of a part on one measure: with it → without it."""
    values = f"{lower(headed(written))} {written.number(one.baseline)} → {written.number(one.without)}"
    if not one.difference.clear:
        return f"{values}, no clear difference {written.interval(one.difference.low, one.difference.high)}"
    ratio = one.without / one.baseline if one.baseline > 0 else 0.0
    return f"{values}, {written.change(one.difference)}" + (f", {ratio:.2g} times as much" if ratio >= 2 else "")


def _unchanged(report: ExperimentReport) -> Iterator[Sentence]:
    names = [one.name for one in report.configurations if one.unchanged and one.name != report.baseline]
    if names:
        yield Sentence(", ".join(names), f"no measure differs clearly from {report.baseline}.")


def failed(report: ExperimentReport) -> Iterator[Sentence]:
    for one in report.configurations:
        if one.failures:
            why = f"; the first: {one.first_failure}" if one.first_failure else "."
            yield Sentence(one.name, f"{one.failures:,} of {one.answers + one.failures:,} were not answered{why}")


def counted(count: int, noun: str, plural: str = "") -> str:
    """`plural`: that of the noun where it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def headed(written: Figures) -> str:
    """A measure's title with its unit."""
    unit = f" ({written.info.unit})" if written.info.unit else ""
    return written.info.title + unit


def lower(title: str) -> str:
    """A title inside a sentence: its first letter is lower case, except in an abbreviation."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]
