"""The router: a logistic regression that decides whether the edge or the cloud answers a whole request."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from common.enums import ConfidenceStrategy
from common.errors import ConfigError
from common.routing import features
from common.routing.features import Features

MOST_TOKENS = 64
"""That a router may look at: a person waits for them."""
MOST_WEIGHT = 1_000_000
"""Beyond all that a fit finds; sums of larger ones may be no number."""


class Side(StrEnum):
    """Who answers a whole request."""

    EDGE = "edge"
    CLOUD = "cloud"


class Training(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a router was trained on; it says little about other models."""

    edge_model: str
    cloud_model: str
    strategy: ConfidenceStrategy
    """Of the confidences of the edge's tokens."""
    questions: int
    """Those that the weights were fitted to."""


class Router(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A router's file. Its score: the probability that the edge's answer is worse than the cloud's."""

    tokens: Annotated[int, Meta(ge=0, le=MOST_TOKENS)]
    """Tokens that the edge draws before the router decides; 0: it decides by the prompt alone."""
    threshold: Annotated[float, Meta(ge=0, le=1)]
    """From this score on the cloud answers."""
    bias: float
    weights: dict[str, float]
    """By feature (common/routing/features.py)."""
    training: Training

    def __post_init__(self) -> None:
        if unknown := self.weights.keys() - set(features.NAMES):
            raise ValueError(f"there is no feature {min(unknown)!r}")
        if not self.tokens and (unseen := self.weights.keys() & {*features.OF_DRAFT, features.ENDED}):
            raise ValueError(f"{min(unseen)} is of the edge's first tokens, and `tokens` is 0")
        if not all(abs(weight) <= MOST_WEIGHT for weight in (self.bias, *self.weights.values())):  # nor NaN
            raise ValueError(f"bias and weights are numbers from -{MOST_WEIGHT} to {MOST_WEIGHT}")

    def score(self, given: Mapping[str, float]) -> float:
        """The probability that the edge's answer to a request with these features is worse than the cloud's."""
        odds = self.bias + math.fsum(weight * given[name] for name, weight in self.weights.items())
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, odds))))


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """Who answers, and why: the cloud from a score of `threshold` on. `score` None: the edge has drawn nothing."""

    side: Side
    score: float | None
    threshold: float


def route(router: Router, given: Mapping[str, float], threshold: float) -> RouteDecision:
    """Who answers a request with these features."""
    score = router.score(given)
    return RouteDecision(Side.CLOUD if score >= threshold else Side.EDGE, score, threshold)


@dataclass(frozen=True, slots=True)
class Routing:
    """One request's router, with what is known of the request before the first token."""

    router: Router
    threshold: float
    prompt: Features
    settled: RouteDecision | None = None
    """What was decided for the part of the answer before this one."""

    @property
    def tokens(self) -> int:
        """Tokens that the edge draws before the decision."""
        return 0 if self.settled else self.router.tokens

    def decide(self, confidences: Sequence[float], finished: bool) -> RouteDecision:
        """After the edge's first `tokens` tokens, or all of its answer; the cloud where it cannot draw any."""
        if self.settled is not None:
            return self.settled
        drawn = confidences[: self.router.tokens]
        if self.router.tokens and not drawn:
            return RouteDecision(Side.CLOUD, None, self.threshold)
        seen = features.of_draft(drawn, finished) if drawn else {}
        return route(self.router, self.prompt | seen, self.threshold)


def load(path: Path) -> Router:
    """Raises ConfigError for a file that cannot be read or is no router."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Router)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a router: {_one_line(str(error))}") from error


def _one_line(text: str) -> str:
    """Names of a file's fields may have line breaks and control characters, which would go to a terminal."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
