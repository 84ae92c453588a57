"""Curves of policies with their intervals, the areas under them, and RouteLLM's metrics (Ong et al., arXiv 2406.18665).

APGR: the share of the distance between edge only and cloud only that a policy recovers, mean over all costs. CPT(50 %):
the cost at which it recovers half of the distance. There a cost is the share of calls to the strong model, here the
share of the cloud's tokens. Intervals are of a bootstrap over the questions, the same draws for all policies; what was
fitted to the other half of the questions is not fitted again in each draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.harness import areas
from experiments.harness.statistics import Floats, draws, each_once, interval
from experiments.report.schema import Difference, Measure
from experiments.routing.policies import Policy

RECOVERED = (0.5, 0.8)
"""The shares of which the CPT is told, as RouteLLM has them."""


@dataclass(frozen=True)
class PolicyCurve:
    """One policy's cost and quality at each budget, and its figures; `beside`: its APGR minus another policy's."""

    name: str
    cost: list[float]
    quality: list[Measure]
    area: Measure
    apgr: Measure
    cpt: dict[float, Measure]
    beside: dict[str, Difference]


def curves(policies: Sequence[Policy], beside: Sequence[str] = ("random", "token gate")) -> list[PolicyCurve]:
    """Costs are relative to the cloud alone, which is the last budget of every policy."""
    count = policies[0].quality.shape[1]
    plain, drawn = each_once(count), draws(count)
    values = {one.name: _points(one, plain) for one in policies}
    spread = {one.name: _points(one, drawn) for one in policies}
    gained = {name: (recovered_area(*values[name]), recovered_area(*spread[name])) for name in values}
    return [
        PolicyCurve(
            name=name,
            cost=values[name][0][0].tolist(),
            quality=[_measure(values[name][1][:, n], spread[name][1][:, n]) for n in range(len(values[name][0][0]))],
            area=_measure(areas.under(*values[name]), areas.under(*spread[name])),
            apgr=_measure(*gained[name]),
            cpt={share: _measure(cost_of(share, *values[name]), cost_of(share, *spread[name])) for share in RECOVERED},
            beside={
                other: _difference(gained[name][0] - gained[other][0], gained[name][1] - gained[other][1])
                for other in beside
                if other != name
            },
        )
        for name in values
    ]


def _points(policy: Policy, drawn: Floats) -> tuple[Floats, Floats]:
    """Cost and quality at each budget in each draw, [draws, budgets]."""
    cost, quality = drawn @ policy.cost.T, drawn @ policy.quality.T
    return cost / np.maximum(cost[:, -1:], 1e-12), quality / drawn.sum(-1, keepdims=True)


def recovered_area(cost: Floats, quality: Floats) -> Floats:
    """The APGR in each draw; NaN where edge only is as good as cloud only, by the luck of the draw."""
    edge, distance = quality[:, 0], quality[:, -1] - quality[:, 0]
    above = areas.under(cost, quality) - edge
    share: Floats = np.divide(above, distance, out=np.full(len(cost), np.nan), where=distance > 0)
    return share


def cost_of(share: float, cost: Floats, quality: Floats) -> Floats:
    """The least cost in each draw at which the policy recovers a `share` of the distance, between budgets on a line."""
    wanted = (quality[:, 0] + share * (quality[:, -1] - quality[:, 0]))[:, None]
    order = np.argsort(cost, axis=-1, kind="stable")
    x, y = (np.take_along_axis(each, order, axis=-1) for each in (cost, quality))
    after = np.argmax(y >= wanted, axis=-1)[:, None]
    before = np.maximum(after - 1, 0)
    (x0, x1), (y0, y1) = ([np.take_along_axis(each, at, axis=-1) for at in (before, after)] for each in (x, y))
    part = np.divide(wanted - y0, y1 - y0, out=np.zeros_like(y0), where=y1 > y0)
    found: Floats = (x0 + np.clip(part, 0, 1) * (x1 - x0))[:, 0]
    return found


def _measure(value: Floats, drawn: Floats) -> Measure:
    return Measure(float(value[0]), *interval(drawn))


def _difference(value: Floats, drawn: Floats) -> Difference:
    low, high = interval(drawn)
    return Difference(float(value[0]), low, high, clear=low > 0 or high < 0)
