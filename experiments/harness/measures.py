"""Defines the measures of an experiment: how each is computed from answers and counters.

Counted measures are equal in two runs with one seed at temperature 0. Times are not counted, and neither are bytes of
messages that contain times.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from common.types import Provenance
from experiments.harness.statistics import Floats, quantiles, ratios
from experiments.harness.trials import TrialResult
from experiments.report.schema import AnswerRow, Counts, MeasureInfo

Unit = tuple[int, ...]
"""The questions of a trial: the bootstrap draws them as a whole, and configurations are paired by them."""


@dataclass
class UnitResult:
    """All repeats of one unit by one configuration: answers that did not fail, counters of their trials, failures.

    `seconds`: of the trials together, each from the first request to the last answer.
    """

    rows: list[AnswerRow] = field(default_factory=list)
    counts: list[Counts] = field(default_factory=list)
    failures: int = 0
    seconds: float = 0.0


Sample = dict[Unit, UnitResult]
"""Everything that one configuration was asked."""


@dataclass(frozen=True)
class RatioOfSums:
    """The sum of `amount` over all units, divided by the sum of `per`."""

    amount: Callable[[UnitResult], float]
    per: Callable[[UnitResult], float]

    def of(self, sample: Sample, units: Sequence[Unit], drawn: Floats) -> Floats:
        """The value in each draw, [draws]; `drawn` are weights of the units, [draws, units]."""
        return ratios(drawn, self._each(self.amount, sample, units), self._each(self.per, sample, units))

    def figures(self, sample: Sample, units: Sequence[Unit]) -> Floats:
        """Numerator and denominator in each unit, [2, units]."""
        return np.array([self._each(each, sample, units) for each in (self.amount, self.per)])

    def _each(self, of: Callable[[UnitResult], float], sample: Sample, units: Sequence[Unit]) -> Floats:
        return np.array([of(sample[unit]) if unit in sample else 0.0 for unit in units], dtype=np.float64)


@dataclass(frozen=True)
class Quantile:
    """The value below which a `share` (0 to 1) of all answers lies."""

    share: float
    value: Callable[[AnswerRow], float]

    def of(self, sample: Sample, units: Sequence[Unit], drawn: Floats) -> Floats:
        """The value in each draw, [draws]; `drawn` are weights of the units, [draws, units]."""
        values = [[self.value(row) for row in sample[unit].rows] if unit in sample else [] for unit in units]
        table = np.full((len(units), max(map(len, values), default=0)), np.nan)
        for number, row in enumerate(values):
            table[number, : len(row)] = row
        return np.full(len(drawn), np.nan) if np.isnan(table).all() else quantiles(drawn, table, self.share)


def mean(of: Callable[[AnswerRow], float]) -> RatioOfSums:
    """The mean over answers."""
    return RatioOfSums(lambda unit: sum(map(of, unit.rows)), lambda unit: len(unit.rows))


def over(amount: Callable[[AnswerRow], float], per: Callable[[AnswerRow], float]) -> RatioOfSums:
    """The sum of `amount` over answers, divided by the sum of `per`."""
    return RatioOfSums(lambda unit: sum(map(amount, unit.rows)), lambda unit: sum(map(per, unit.rows)))


def counted(of: Callable[[Counts], float]) -> RatioOfSums:
    """The mean over answers of what servers and network counted."""
    return RatioOfSums(lambda unit: sum(map(of, unit.counts)), lambda unit: len(unit.rows))


def counted_over(amount: Callable[[Counts], float], per: Callable[[Counts], float]) -> RatioOfSums:
    """A ratio of two sums of what servers and network counted."""
    return RatioOfSums(lambda unit: sum(map(amount, unit.counts)), lambda unit: sum(map(per, unit.counts)))


@dataclass(frozen=True)
class MeasureDefinition:
    """A measure: its title and unit, and how it is computed."""

    info: MeasureInfo
    how: RatioOfSums | Quantile


def time(title: str, how: RatioOfSums | Quantile, unit: str = "ms") -> MeasureDefinition:
    """A measure of time or speed; a unit with "/s" is better higher."""
    return MeasureDefinition(MeasureInfo(title, unit, "higher" if "/s" in unit else "lower", counted=False), how)


def count(title: str, unit: str, better: str, how: RatioOfSums, exact: bool = True) -> MeasureDefinition:
    """A measure of counts; `exact`: equal in two runs with one seed at temperature 0."""
    assert better in ("higher", "lower", "neither")
    return MeasureDefinition(MeasureInfo(title, unit, better, exact), how)  # type: ignore[arg-type]


def cloud_tokens(row: AnswerRow) -> float:
    """Tokens of an answer that the cloud generated or verified."""
    return sum(tokens for source, tokens in row.provenance.items() if source != Provenance.EDGE)


MEASURES = {
    "latency_mean_ms": time("Latency, mean", mean(lambda row: row.latency_ms)),
    "latency_p50_ms": time("Latency, median", Quantile(0.5, lambda row: row.latency_ms)),
    "latency_p95_ms": time("Latency, 95th percentile", Quantile(0.95, lambda row: row.latency_ms)),
    "first_token_mean_ms": time("Time to first token, mean", mean(lambda row: row.first_token_ms)),
    "first_token_p50_ms": time("Time to first token, median", Quantile(0.5, lambda row: row.first_token_ms)),
    "tokens_per_second": time(
        "Speed", over(lambda row: row.tokens, lambda row: row.latency_ms / 1000), unit="tokens/s"
    ),
    "success_rate": count(
        "Success rate", "", "higher",
        RatioOfSums(lambda unit: len(unit.rows), lambda unit: len(unit.rows) + unit.failures),
    ),
    "quality": count(
        "Quality", "", "higher", over(lambda row: row.quality or 0.0, lambda row: float(row.quality is not None))
    ),
    "tokens": count("Tokens", "per answer", "neither", mean(lambda row: row.tokens)),
    "cloud_rate": count("Cloud rate", "", "lower", over(cloud_tokens, lambda row: row.tokens)),
    "cloud_calls": count("Cloud calls", "per answer", "lower", mean(lambda row: row.cloud_calls)),
    "cloud_steps": count("Cloud steps", "per answer", "lower", mean(lambda row: row.cloud_steps)),
    "cloud_busy_ms": time(
        "Cloud busy", counted(lambda each: 1000 * (each.cloud.verify_seconds + each.cloud.stream_seconds))
    ),
    "accepted_tokens": count("Accepted tokens", "per answer", "higher", mean(lambda row: row.accepted)),
    "acceptance_rate": count("Acceptance rate", "", "higher", over(lambda row: row.accepted, lambda row: row.drafted)),
    "acceptance_length": count(
        "Acceptance length", "tokens", "higher",
        over(lambda row: (row.accepted + row.rounds) * (row.drafted > 0), lambda row: row.rounds * (row.drafted > 0)),
    ),
    "edge_kv_hit_rate": count(
        "KV hit rate, edge", "", "higher",
        counted_over(lambda each: each.edge.prefix - each.edge.prefix_computed, lambda each: each.edge.prefix),
    ),
    "cloud_kv_hit_rate": count(
        "KV hit rate, cloud", "", "higher",
        counted_over(lambda each: each.cloud.prefix - each.cloud.prefix_computed, lambda each: each.cloud.prefix),
    ),
    "edge_recomputed": count(
        "Tokens recomputed, edge", "per answer", "lower", counted(lambda each: each.edge.prefix_computed)
    ),
    "cloud_recomputed": count(
        "Tokens recomputed, cloud", "per answer", "lower", counted(lambda each: each.cloud.prefix_computed)
    ),
    "bytes_up": count("Bytes up", "per answer", "lower", mean(lambda row: row.bytes_up)),
    "bytes_down": count("Bytes down", "per answer", "lower", mean(lambda row: row.bytes_down), exact=False),
    "network_bytes_up": count(
        "Bytes up, with headers", "per answer", "lower", counted(lambda each: each.network.bytes_up), exact=False
    ),
    "network_bytes_down": count(
        "Bytes down, with headers", "per answer", "lower", counted(lambda each: each.network.bytes_down),
        exact=False,
    ),
    "connections": count("Connections", "per answer", "lower", counted(lambda each: each.network.connections)),
}  # fmt: skip


def agreement(reference: Mapping[int, str]) -> MeasureDefinition:
    """The share of answers with exactly the text of `reference`, which is by question."""
    how = over(lambda row: float(row.text == reference.get(row.question)), lambda row: float(row.question in reference))
    return count("Agreement with cloud only", "", "higher", how)


def sample(entries: Iterable[TrialResult]) -> Sample:
    """The results of one configuration's trials, by unit."""
    by_unit: Sample = {}
    for entry in entries:
        unit = by_unit.setdefault(entry.what.questions, UnitResult())
        rows = [row for row in entry.rows if row.error is None]
        unit.rows += rows
        unit.failures += len(entry.rows) - len(rows)
        if rows:
            unit.counts.append(entry.counts)
            unit.seconds += entry.seconds
    return by_unit
