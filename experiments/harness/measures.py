"""What is measured of each configuration, and how surely: one table of measures. Knows neither servers nor reports.

What is counted is the same in two runs with one seed at temperature 0. Not counted are times, and bytes where times
are written in them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from common.types import Provenance
from experiments.harness.statistics import Floats, as_asked, draws, interval, quantiles, ratios
from experiments.harness.trials import TrialResult
from experiments.report.schema import AnswerRow, Counts, Difference, Measure, MeasureInfo

Unit = tuple[int, ...]
"""The questions of a trial: what is drawn again as a whole, and what configurations are paired by."""


@dataclass
class Asked:
    """What one configuration made of one unit, over all repeats: answers that did not fail, and what was counted.

    `seconds`: how long the trials took, from the first question to the last answer.
    """

    rows: list[AnswerRow] = field(default_factory=list)
    counts: list[Counts] = field(default_factory=list)
    failures: int = 0
    seconds: float = 0.0


Sample = dict[Unit, Asked]
"""All that was asked of one configuration."""


@dataclass(frozen=True)
class RatioOfSums:
    """Both are sums over a unit; the measure is the sum of the one over the sum of the other."""

    amount: Callable[[Asked], float]
    per: Callable[[Asked], float]

    def of(self, sample: Sample, units: Sequence[Unit], drawn: Floats) -> Floats:
        return ratios(drawn, self._each(self.amount, sample, units), self._each(self.per, sample, units))

    def figures(self, sample: Sample, units: Sequence[Unit]) -> Floats:
        """What the measure is made of, to be compared: [2, units]."""
        return np.array([self._each(each, sample, units) for each in (self.amount, self.per)])

    def _each(self, of: Callable[[Asked], float], sample: Sample, units: Sequence[Unit]) -> Floats:
        return np.array([of(sample[unit]) if unit in sample else 0.0 for unit in units], dtype=np.float64)


@dataclass(frozen=True)
class Quantile:
    share: float
    value: Callable[[AnswerRow], float]

    def of(self, sample: Sample, units: Sequence[Unit], drawn: Floats) -> Floats:
        values = [[self.value(row) for row in sample[unit].rows] if unit in sample else [] for unit in units]
        table = np.full((len(units), max(map(len, values), default=0)), np.nan)
        for place, found in enumerate(values):
            table[place, : len(found)] = found
        return np.full(len(drawn), np.nan) if np.isnan(table).all() else quantiles(drawn, table, self.share)


def mean(of: Callable[[AnswerRow], float]) -> RatioOfSums:
    """Per answer."""
    return RatioOfSums(lambda asked: sum(map(of, asked.rows)), lambda asked: len(asked.rows))


def over(amount: Callable[[AnswerRow], float], per: Callable[[AnswerRow], float]) -> RatioOfSums:
    return RatioOfSums(lambda asked: sum(map(amount, asked.rows)), lambda asked: sum(map(per, asked.rows)))


def counted(of: Callable[[Counts], float]) -> RatioOfSums:
    """Per answer, by what servers and network counted."""
    return RatioOfSums(lambda asked: sum(map(of, asked.counts)), lambda asked: len(asked.rows))


def counted_over(amount: Callable[[Counts], float], per: Callable[[Counts], float]) -> RatioOfSums:
    return RatioOfSums(lambda asked: sum(map(amount, asked.counts)), lambda asked: sum(map(per, asked.counts)))


@dataclass(frozen=True)
class Definition:
    info: MeasureInfo
    how: RatioOfSums | Quantile


def time(title: str, how: RatioOfSums | Quantile, unit: str = "ms") -> Definition:
    return Definition(MeasureInfo(title, unit, "higher" if "/s" in unit else "lower", counted=False), how)


def count(title: str, unit: str, better: str, how: RatioOfSums, exact: bool = True) -> Definition:
    assert better in ("higher", "lower", "neither")
    return Definition(MeasureInfo(title, unit, better, exact), how)  # type: ignore[arg-type]


def answered(row: AnswerRow) -> float:
    return 1.0


def by_the_cloud(row: AnswerRow) -> float:
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
        RatioOfSums(lambda asked: len(asked.rows), lambda asked: len(asked.rows) + asked.failures),
    ),
    "quality": count(
        "Quality", "", "higher", over(lambda row: row.quality or 0.0, lambda row: float(row.quality is not None))
    ),
    "tokens": count("Tokens", "per answer", "neither", mean(lambda row: row.tokens)),
    "cloud_rate": count("Cloud rate", "", "lower", over(by_the_cloud, lambda row: row.tokens)),
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


def agreement(reference: Mapping[int, str]) -> Definition:
    """Share of answers that are `reference`'s, by question, to the character."""
    how = over(lambda row: float(row.text == reference.get(row.question)), lambda row: float(row.question in reference))
    return count("Agreement with cloud only", "", "higher", how)


def sample(entries: Iterable[TrialResult]) -> Sample:
    """All trials of one configuration."""
    found: Sample = {}
    for entry in entries:
        asked = found.setdefault(entry.what.questions, Asked())
        rows = [row for row in entry.rows if row.error is None]
        asked.rows += rows
        asked.failures += len(entry.rows) - len(rows)
        if rows:
            asked.counts.append(entry.counts)
            asked.seconds += entry.seconds
    return found


def measured(definition: Definition, found: Sample) -> Measure | None:
    """With the interval that holds 95 % of what other questions would give; None where the measure makes no sense."""
    units = sorted(found)
    value = definition.how.of(found, units, as_asked(len(units)))[0]
    if np.isnan(value):
        return None
    return Measure(float(value), *interval(definition.how.of(found, units, draws(len(units)))))


def difference(definition: Definition, found: Sample, base: Sample, share: float = 0.95) -> Difference | None:
    """`found` less `base`, over the units that both answered, each drawn again for both at once."""
    units = sorted(unit for unit in found.keys() & base.keys() if _both_answered(found[unit], base[unit]))
    if not units:
        return None

    def by(drawn: Floats) -> Floats:
        return definition.how.of(found, units, drawn) - definition.how.of(base, units, drawn)

    (value,) = by(as_asked(len(units)))
    if np.isnan(value):
        return None
    low, high = interval(by(draws(len(units))), share)
    return Difference(float(value), low, high, clear=low > 0 or high < 0)


def relative(definition: Definition, found: Sample, base: Sample) -> Measure | None:
    """`found` over `base`, paired as a difference is: 1 where they are the same."""
    units = sorted(unit for unit in found.keys() & base.keys() if found[unit].rows and base[unit].rows)

    def by(drawn: Floats) -> Floats:
        below = definition.how.of(base, units, drawn)
        above = definition.how.of(found, units, drawn)
        quotient: Floats = np.divide(above, below, out=np.full(len(drawn), np.nan), where=below > 0)
        return quotient

    value = by(as_asked(len(units)))[0] if units else np.nan
    return None if np.isnan(value) else Measure(float(value), *interval(by(draws(len(units)))))


def _both_answered(one: Asked, other: Asked) -> bool:
    return bool(one.rows and other.rows) or bool(one.failures or other.failures)


NOTABLE = 0.05
"""The share of the baseline's value by which a time must differ: two servers of one config differ by some percent."""

FEWEST = 10
"""Units without which times say nothing: were fewer all on one side, chance alone could do it (a sign test)."""


def unchanged(definitions: Mapping[str, Definition], found: Sample, base: Sample) -> bool:
    """Whether no count differs in any unit, and no other measure does clearly and notably.

    Clearly here means for all these measures together (Bonferroni), else chance alone would show one now and then.
    """
    units = sorted(found.keys() | base.keys())
    timed = [each for each in definitions.values() if not each.info.counted]
    for each in definitions.values():
        if each.info.counted and isinstance(each.how, RatioOfSums):
            figures = each.how.figures(found, units), each.how.figures(base, units)
            if not np.array_equal(*figures):
                return False
    share = 1 - 0.05 / max(1, len(timed))
    return not any(_notably(each, found, base, share) for each in timed)


def _notably(definition: Definition, found: Sample, base: Sample, share: float) -> bool:
    """Whether the whole interval lies further from 0 than NOTABLE."""
    if len(found) < FEWEST:
        return False
    apart, usual = difference(definition, found, base, share), measured(definition, base)
    return apart is not None and usual is not None and max(apart.low, -apart.high) > NOTABLE * abs(usual.value)
