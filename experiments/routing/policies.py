"""Policies over recorded answers: a rule sends each question one of two ways by its score; the best rules by budget.

Everything that is fitted or chosen comes from one half of the questions and is judged on the other, both ways round: a
router's weights, and for each budget the rules with the best quality. Between two rules a policy may toss a coin.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration import data
from calibration.routing import SideAnswers, scores_of, train
from common.enums import ConfidenceStrategy
from common.routing.router import Router, Training
from experiments.routing.recorded import Numbers, RecordedAnswers

FOLDS = 5
"""Within a half: each part is scored by a router that was trained on the others."""
SEED = 0
SHARES = np.linspace(0, 1, 41)
"""Quantiles of the scores that are tried as thresholds."""
BUDGETS = np.linspace(0, 1, 41)
"""Costs relative to cloud only."""
UNKNOWN = Training(edge_model="", cloud_model="", strategy=ConfidenceStrategy.MAX_PROB, questions=0)


class Rule(NamedTuple):
    """Questions with a score below `threshold` are answered in one way, the others in another."""

    below: int
    above: int
    threshold: float


@dataclass(frozen=True)
class Policy:
    """One kind of policy at every budget: expected quality and cost of each question, [budgets, N]."""

    name: str
    quality: Numbers
    cost: Numbers


@dataclass(frozen=True)
class Half:
    """One half of the questions, by number, with the scores of each router: of `fitted` ones, out of their fold."""

    questions: NDArray[np.intp]
    scores: Numbers


def cross_fitted(answers: RecordedAnswers, cost: str, tokens: Sequence[int]) -> list[Policy]:
    """Chance, the gate, a router for each number of `tokens` that it looks at, and the last of them with the gate."""
    first, second = (np.sort(np.array(half)) for half in data.split(len(answers.sides), 0.5, SEED))
    names = {"random": (), "token gate": ()} | {_named(n): (n,) for n in tokens} | {"router and gate": (tokens[-1],)}
    shape = len(BUDGETS), len(answers.sides)
    found = [Policy(name, np.zeros(shape), np.zeros(shape)) for name in names]
    for chosen_on, judged_on in ((first, second), (second, first)):
        for policy, (name, looks) in zip(found, names.items(), strict=True):
            fitting, judging = _halves(answers.sides, chosen_on, judged_on, looks)
            rules = _rules(name, answers, fitting.scores)
            weights = chosen(rules, answers, cost, fitting)
            policy.quality[:, judged_on] = weights @ outcome(rules, answers.quality, judging)
            policy.cost[:, judged_on] = weights @ outcome(rules, answers.costs[cost], judging)
    return found


def _named(tokens: int) -> str:
    """By what it looks at beside the prompt."""
    return "router, prompt alone" if not tokens else f"router, {tokens} token{'s' * (tokens > 1)}"


def _rules(name: str, answers: RecordedAnswers, scores: Numbers) -> list[Rule]:
    edge, cloud, gates = answers.edge, answers.cloud, answers.gates
    ends = [Rule(edge, edge, 0.0), Rule(cloud, cloud, 0.0)]
    thresholds = np.unique(np.quantile(scores, SHARES)).tolist() if len(scores) else []
    gated = [Rule(gate, gate, 0.0) for gate in gates]
    routed = [Rule(edge, cloud, at) for at in thresholds]
    if name == "random":
        return ends
    if name == "token gate":
        return ends + gated
    if name != "router and gate":
        return ends + routed
    both = [Rule(*pair, at) for gate in gates for pair in ((edge, gate), (gate, cloud)) for at in thresholds]
    return ends + gated + routed + both


def _halves(
    sides: Sequence[SideAnswers], chosen_on: NDArray[np.intp], judged_on: NDArray[np.intp], looks: Sequence[int]
) -> tuple[Half, Half]:
    """Scored by the router that looks at so many tokens; without scores where there is no router."""
    if not looks:
        return Half(chosen_on, np.zeros(0)), Half(judged_on, np.zeros(0))
    (tokens,) = looks
    fitting, judging = ([sides[n] for n in half] for half in (chosen_on, judged_on))
    scores = np.zeros(len(fitting))
    for fold in range(FOLDS):
        others = [each for n, each in enumerate(fitting) if n % FOLDS != fold]
        scores[fold::FOLDS] = scores_of(train(others, tokens, UNKNOWN), fitting[fold::FOLDS])
    router: Router = train(fitting, tokens, UNKNOWN)
    return Half(chosen_on, scores), Half(judged_on, scores_of(router, judging))


def outcome(rules: Sequence[Rule], table: Numbers, half: Half) -> Numbers:
    """What each rule gives each question of this half, [rules, questions]; `table`: of each way, [W, N]."""
    own = table[:, half.questions]
    rows = [
        np.where(half.scores >= rule.threshold, own[rule.above], own[rule.below])
        if rule.below != rule.above
        else own[rule.below]
        for rule in rules
    ]
    return np.array(rows)


def chosen(rules: Sequence[Rule], answers: RecordedAnswers, cost: str, fitting: Half) -> Numbers:
    """How often each rule is taken at each budget, [budgets, rules]; all is the edge's at 0, the cloud's at 1.

    The rules, or the two between which a coin decides, that give the best quality for the budget on this half.
    """
    alone = answers.costs[cost][answers.cloud][fitting.questions].sum()
    x = outcome(rules, answers.costs[cost], fitting).sum(-1) / max(alone, 1e-12)
    y = outcome(rules, answers.quality, fitting).mean(-1)
    best = hull(x, y)
    weights = np.zeros((len(BUDGETS), len(rules)))
    for row, budget in zip(weights, BUDGETS, strict=True):
        after = next((n for n, rule in enumerate(best) if x[rule] > budget), len(best))
        if after == len(best):
            row[best[-1]] = 1
            continue
        low, high = best[after - 1], best[after]
        share = (budget - x[low]) / (x[high] - x[low])
        row[low], row[high] = 1 - share, share
    weights[0], weights[-1] = np.eye(len(rules))[0], np.eye(len(rules))[1]
    return weights


def hull(x: Numbers, y: Numbers) -> list[int]:
    """The points from the edge alone, the first, up to the best quality, each pair as steep as can be: concave."""
    found = [0]
    while True:
        here = found[-1]
        ahead = [n for n in range(len(x)) if x[n] > x[here] and y[n] > y[here]]
        if not ahead:
            return found
        found.append(max(ahead, key=lambda n: ((y[n] - y[here]) / (x[n] - x[here]), x[n])))
