"""Computes measures with their intervals and compares two configurations, paired by question."""

from collections.abc import Mapping

import numpy as np

from experiments.harness.measures import MeasureDefinition, RatioOfSums, Sample, UnitResult
from experiments.harness.statistics import Floats, draws, each_once, interval
from experiments.report.schema import Difference, Measure

NOTABLE = 0.05
"""The smallest difference of a time that counts, as a share of the baseline: two servers of one config differ by some
percent."""
FEWEST = 10
"""With fewer units, times say nothing: all could be on one side by chance (a sign test)."""


def evaluate(definition: MeasureDefinition, sample: Sample) -> Measure | None:
    """The measure with its 95 % interval over questions; None where it is undefined (a rate of nothing)."""
    units = sorted(sample)
    value = definition.how.of(sample, units, each_once(len(units)))[0]
    if np.isnan(value):
        return None
    return Measure(float(value), *interval(definition.how.of(sample, units, draws(len(units)))))


def difference(definition: MeasureDefinition, sample: Sample, base: Sample, share: float = 0.95) -> Difference | None:
    """`sample` minus `base` over the units that both answered; each draw takes the same units of both.

    `share`: how much of the draws the interval holds. None where the measure is undefined.
    """
    units = sorted(unit for unit in sample.keys() & base.keys() if _comparable(sample[unit], base[unit]))
    if not units:
        return None

    def by(drawn: Floats) -> Floats:
        return definition.how.of(sample, units, drawn) - definition.how.of(base, units, drawn)

    (value,) = by(each_once(len(units)))
    if np.isnan(value):
        return None
    low, high = interval(by(draws(len(units))), share)
    return Difference(float(value), low, high, clear=low > 0 or high < 0)


def ratio(definition: MeasureDefinition, sample: Sample, base: Sample) -> Measure | None:
    """`sample` over `base`, paired as in `difference`; 1 where they are equal, None where the measure is undefined."""
    units = sorted(unit for unit in sample.keys() & base.keys() if sample[unit].rows and base[unit].rows)

    def by(drawn: Floats) -> Floats:
        below = definition.how.of(base, units, drawn)
        above = definition.how.of(sample, units, drawn)
        quotient: Floats = np.divide(above, below, out=np.full(len(drawn), np.nan), where=below > 0)
        return quotient

    value = by(each_once(len(units)))[0] if units else np.nan
    return None if np.isnan(value) else Measure(float(value), *interval(by(draws(len(units)))))


def _comparable(one: UnitResult, other: UnitResult) -> bool:
    """Failures count, so that a success rate can be compared."""
    return bool(one.rows and other.rows) or bool(one.failures or other.failures)


def unchanged(definitions: Mapping[str, MeasureDefinition], sample: Sample, base: Sample) -> bool:
    """Whether no count differs in any unit and no other measure differs significantly by more than NOTABLE.

    Significance is for all these measures together (Bonferroni): otherwise chance would show a difference now and then.
    """
    units = sorted(sample.keys() | base.keys())
    timed = [each for each in definitions.values() if not each.info.counted]
    for each in definitions.values():
        if each.info.counted and isinstance(each.how, RatioOfSums):
            figures = each.how.figures(sample, units), each.how.figures(base, units)
            if not np.array_equal(*figures):
                return False
    share = 1 - 0.05 / max(1, len(timed))
    return not any(_differs(each, sample, base, share) for each in timed)


def _differs(definition: MeasureDefinition, sample: Sample, base: Sample, share: float) -> bool:
    """Whether the whole interval of the difference is further from 0 than NOTABLE."""
    if len(sample) < FEWEST:
        return False
    change, usual = difference(definition, sample, base, share), evaluate(definition, base)
    return change is not None and usual is not None and max(change.low, -change.high) > NOTABLE * abs(usual.value)
