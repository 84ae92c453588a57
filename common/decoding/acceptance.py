"""How often the cloud accepts draft tokens: over all answers, and in the answer under way.

Rejections are taken as the events of a Poisson process, so an estimate is a number of events over an exposure: Gamma's
conjugate prior, whose weight is the exposure that it counts as. A token's exposure is its hazard, -log of the chance
that it is accepted; a rejection ends the exposure before its token's end.
"""

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

MEMORY = 0.95
"""Each observation multiplies the weight of those before it by this: about the last twenty count."""
PLACES = 16
"""Places in a run of accepted tokens that have an estimate of their own; later ones share the last."""
UNMEASURED = 0.8
"""The chance at a place of which nothing is known."""
DOUBT = 0.003
"""Added to every hazard by confidence: a token that the edge is certain of is rejected now and then, too."""
ALL_MEMORY = 0.998
"""For each token: about the last five hundred count among all answers."""
TEXT_MEMORY = 0.97
"""For each token: about the last thirty of the answer count."""
PRIOR = 2.0
"""Exposure, in rejections that it lets expect, that what is known of all answers counts for in a new one."""
RANGE = 0.1, 30.0
"""Of a hazard ratio."""


@dataclass(slots=True)
class HazardRatio:
    """Rejections over those expected; from 1 event and 1 expected on."""

    events: float = 1.0
    exposure: float = 1.0

    @property
    def value(self) -> float:
        return min(max(self.events / self.exposure, RANGE[0]), RANGE[1])

    def add(self, hazard: float, rejected: bool, memory: float) -> None:
        """One token that was accepted or rejected."""
        # The mean time of the first event, given that it lies within the token (expectation maximization).
        seen = 1 / self.value - hazard / math.expm1(self.value * hazard) if rejected else hazard
        self.events = memory * self.events + rejected
        self.exposure = memory * self.exposure + seen


@dataclass(slots=True)
class Acceptance:
    """How often the cloud accepts a draft token: by its place in a run of accepted ones, and by its confidence c.

    `chances` by place: P(a token is accepted | all before it in its run were). They grow along a run, because the edge
    knows some answers and not others; a mean over all tokens would underestimate long runs.

    By confidence the probability is (c * exp(-DOUBT)) ** power: below 1 the edge is underconfident, above 1
    overconfident.
    """

    chances: list[float] = field(default_factory=lambda: [UNMEASURED] * PLACES)
    by_confidence: HazardRatio = field(default_factory=HazardRatio)
    _prefix: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self._accumulate()

    @property
    def power(self) -> float:
        return self.by_confidence.value

    def prefix_acceptance(self, n: int) -> float:
        """P(the first n tokens of a draft are all accepted): 1 at 0, non-increasing."""
        return self._prefix[n] if n <= PLACES else self._prefix[PLACES] * self.chances[-1] ** (n - PLACES)

    def add(self, confidences: Sequence[float], accepted: int, run: int = 0) -> None:
        """A draft of which the first `accepted` tokens were accepted, after `run` accepted tokens before it."""
        for place, confidence in enumerate(confidences[: accepted + 1]):
            at = min(run + place, PLACES - 1)
            self.chances[at] += (1 - MEMORY) * ((place < accepted) - self.chances[at])
            self.by_confidence.add(hazard(confidence), place == accepted, ALL_MEMORY)
        self._accumulate()

    def _accumulate(self) -> None:
        self._prefix = list(itertools.accumulate(self.chances, operator.mul, initial=1.0))


class TextAcceptance:
    """The same for one answer: what all answers have shown, until the answer shows otherwise, within a few rounds."""

    def __init__(self, everything: Acceptance) -> None:
        self._everything = everything
        power = everything.power
        self._by_confidence = HazardRatio(PRIOR * power, PRIOR)
        self._by_place = HazardRatio(PRIOR, PRIOR)

    @property
    def power(self) -> float:
        return self._by_confidence.value

    def prefix_acceptance(self, n: int) -> float:
        """P(the first n tokens of a draft are all accepted): 1 at 0, non-increasing."""
        return math.pow(self._everything.prefix_acceptance(n), self._by_place.value)

    def add(self, confidences: Sequence[float], accepted: int, run: int = 0) -> None:
        """See `Acceptance.add`."""
        for place, confidence in enumerate(confidences[: accepted + 1]):
            rejected = place == accepted
            self._by_confidence.add(hazard(confidence), rejected, TEXT_MEMORY)
            chance = self._everything.chances[min(run + place, PLACES - 1)]
            self._by_place.add(-math.log(min(max(chance, 0.02), 0.99)), rejected, TEXT_MEMORY)


def hazard(confidence: float) -> float:
    """Of a token of this confidence, at a power of 1."""
    return DOUBT - math.log(max(confidence, 1e-3))
