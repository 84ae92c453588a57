"""Measures of an exit's confidence in its token, from what was recorded of it; a higher one is more confident."""

import math
from collections.abc import Callable

import numpy as np

from calibration import data, logistic
from calibration.simulation import Numbers
from calibration.split.records import ExitRecords

NEVER = -2.0
"""Below every measure: of the first exit where there is nothing to compare it with."""
SEED = 0
LEAST = 1e-7
"""The lowest probability that all but the likeliest token have, for its logarithm."""
Measure = Callable[[ExitRecords, int], Numbers]
"""From recordings and the size of the vocabulary to the confidence of E exits in T tokens, [E, T]."""


def max_prob(records: ExitRecords, vocabulary: int) -> Numbers:
    """The probability of the likeliest token."""
    return records.top


def margin(records: ExitRecords, vocabulary: int) -> Numbers:
    """The probability of the likeliest token minus that of the second."""
    return records.top - records.second


def entropy(records: ExitRecords, vocabulary: int) -> Numbers:
    """1 - H / ln V."""
    return 1 - records.entropy / math.log(vocabulary)


def overlap(records: ExitRecords, vocabulary: int) -> Numbers:
    """How far two exits agree: 1 - the total variation distance of their distributions."""
    return _of_two(records.overlap)


def saturation(records: ExitRecords, vocabulary: int) -> Numbers:
    """How little the state changes from one exit to the next: the cosine of both (CALM, arXiv 2207.07061)."""
    return _of_two(records.saturation)


def learned(records: ExitRecords, vocabulary: int) -> Numbers:
    """The probability that the token is the whole model's, by a logistic regression over all other measures.

    One for each exit, which sees this exit and those before it; fitted to one half of the questions for the tokens of
    the other half, both ways round.
    """
    halves = data.split(records.questions, 0.5, SEED)
    found = np.empty_like(records.top)
    for fitting, judged in (halves, halves[::-1]):
        train, test = np.isin(records.question, fitting), np.isin(records.question, judged)
        for exit, right in enumerate(records.agrees):
            inputs = features(records, exit)
            bias, weights = logistic.fit(inputs[train], right[train])
            found[exit, test] = bias + inputs[test] @ weights
    return np.asarray(1 / (1 + np.exp(-found)))


def features(records: ExitRecords, exit: int) -> Numbers:
    """What a classifier sees of an exit, [T, F]: this one's measures and those of the exits before it."""
    columns = []
    for at in range(exit + 1):
        top = np.clip(records.top[at], LEAST, 1 - LEAST)
        rest = np.maximum(records.entropy[at], LEAST)
        columns += [np.log(top / (1 - top)), np.log(rest), records.entropy[at], records.top[at] - records.second[at]]
        if at:
            same = records.token[at] == records.token[at - 1]
            columns += [same.astype(np.float64), records.overlap[at], records.saturation[at]]
    return np.column_stack(columns)


def _of_two(values: Numbers) -> Numbers:
    found = values.copy()
    found[0] = NEVER
    return found


MEASURES: dict[str, Measure] = {
    "max_prob": max_prob,
    "margin": margin,
    "entropy": entropy,
    "overlap": overlap,
    "saturation": saturation,
    "learned": learned,
}
