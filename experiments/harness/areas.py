"""Compares curves of a measure over the cloud rate by the area under them.

As in RouteLLM (Ong et al., 2024), whose "average performance gap recovered" is this area, scaled.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from experiments.harness.measures import MeasureDefinition, Sample
from experiments.harness.statistics import Floats, draws, each_once, interval
from experiments.report.schema import Area, Difference, Measure, Series


def under(rates: Floats, values: Floats) -> Floats:
    """The mean height of the line through points, from their lowest rate to their highest; NaN if these are equal.

    `rates`, `values`: [draws, points]; the result is [draws]. Between points the line is straight: a gate that chooses
    at random between two thresholds lies on it.
    """
    order = np.argsort(rates, axis=-1, kind="stable")
    x, y = (np.take_along_axis(each, order, axis=-1) for each in (rates, values))
    widths = np.diff(x, axis=-1)
    heights = (y[..., 1:] + y[..., :-1]) / 2
    total = widths.sum(axis=-1)
    area: Floats = np.divide((widths * heights).sum(axis=-1), total, out=np.full(len(total), np.nan), where=total > 0)
    return area


def areas(
    series: Sequence[Series],
    ends: Sequence[str],
    samples: Mapping[str, Sample],
    rate: MeasureDefinition,
    value: MeasureDefinition,
    measure: str,
) -> list[Area]:
    """The area of each series between the configurations `ends`, over the units that all configurations answered.

    `measure` is the name of `value`. All areas use the same draws, so their differences are paired. Empty where no
    unit was answered by all, or a measure is undefined.
    """
    names = [*ends, *(name for one in series for name in one.configurations)]
    units = sorted(
        set.intersection(*({unit for unit, result in samples[name].items() if result.rows} for name in names))
    )
    if not units:
        return []

    def of(names: Sequence[str], drawn: NDArray[np.float64]) -> Floats:
        rates, values = (
            np.stack([each.how.of(samples[name], units, drawn) for name in (*ends, *names)], axis=-1)
            for each in (rate, value)
        )
        return under(rates, values)

    def all_of(drawn: Floats) -> tuple[list[Floats], Floats]:
        return [of(one.configurations, drawn) for one in series], of([], drawn)

    (values, line), (drawn, drawn_line) = all_of(each_once(len(units))), all_of(draws(len(units)))
    if any(np.isnan(each).any() for each in (*values, line)):
        return []
    best = int(np.argmax([each[0] for each in values]))
    return [
        Area(
            series=one.name,
            measure=measure,
            area=Measure(float(values[n][0]), *interval(drawn[n])),
            to_line=_difference(values[n] - line, drawn[n] - drawn_line),
            to_best=None if n == best else _difference(values[n] - values[best], drawn[n] - drawn[best]),
        )
        for n, one in enumerate(series)
    ]


def _difference(value: Floats, drawn: Floats) -> Difference:
    low, high = interval(drawn)
    return Difference(float(value[0]), low, high, clear=low > 0 or high < 0)
