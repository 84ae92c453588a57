"""Which curve of a measure over the cloud rate is the best at equal cloud rate: by the area under it. Knows no server.

As in RouteLLM (Ong et al., 2024), whose measure "average performance gap recovered" is this area, scaled.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from experiments.harness.measures import Definition, Sample
from experiments.harness.statistics import Floats, as_asked, draws, interval
from experiments.report.schema import Area, Difference, Measure, Series


def under(rates: Floats, values: Floats) -> Floats:
    """Mean height of the line through points, each [draws, points], from their lowest rate to their highest.

    Between points the line is straight: what a gate has that draws lots between two thresholds.
    """
    order = np.argsort(rates, axis=-1, kind="stable")
    x, y = (np.take_along_axis(each, order, axis=-1) for each in (rates, values))
    widths = np.diff(x, axis=-1)
    heights = (y[..., 1:] + y[..., :-1]) / 2
    found: Floats = (widths * heights).sum(axis=-1) / widths.sum(axis=-1)
    return found


def areas(
    series: Sequence[Series],
    ends: Sequence[str],
    samples: Mapping[str, Sample],
    rate: Definition,
    value: Definition,
    measure: str,
) -> list[Area]:
    """Of each series, with `ends` at both sides of it; over the units that all configurations answered.

    All areas are of the same draws, so that their differences are paired. None where nothing was measured.
    """
    names = [*ends, *(name for one in series for name in one.configurations)]
    units = sorted(set.intersection(*({unit for unit, asked in samples[name].items() if asked.rows} for name in names)))
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

    (asked, line), (drawn, drawn_line) = all_of(as_asked(len(units))), all_of(draws(len(units)))
    if any(np.isnan(each).any() for each in (*asked, line)):
        return []
    best = int(np.argmax([each[0] for each in asked]))
    return [
        Area(
            series=one.name,
            measure=measure,
            area=Measure(float(asked[n][0]), *interval(drawn[n])),
            to_line=_difference(asked[n] - line, drawn[n] - drawn_line),
            to_best=None if n == best else _difference(asked[n] - asked[best], drawn[n] - drawn[best]),
        )
        for n, one in enumerate(series)
    ]


def _difference(value: Floats, drawn: Floats) -> Difference:
    low, high = interval(drawn)
    return Difference(float(value[0]), low, high, clear=low > 0 or high < 0)
