"""Which exit's token is taken: by its confidence, and by how much time is left for it. Pure: no clock, no engine.

After CE-CoLLM (arXiv 2411.02829): an exit that is sure enough gives the token, and the layers behind it owe its
position.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class AnswerPace:
    """How an answer has gone until now: `tokens` of it in `elapsed_ms`, from when its first exit was first heard on.

    `deeper_ms`: what a token took on average that this exit was not sure of, from there until it was there; 0: unknown.
    """

    tokens: int = 0
    elapsed_ms: float = 0.0
    deeper_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class LatencyAwareEarlyExit:
    """One threshold for each exit, and the milliseconds that a token may take on average, if there are such.

    A threshold above 1 means that its exit is never taken, whatever the time.
    """

    thresholds: tuple[float, ...]
    budget_ms: float | None = None

    def threshold(self, exit: int, pace: AnswerPace) -> float:
        """The confidence that `exit`, counted from 0, must reach now.

        What was asked for, t, while the tokens until now have left enough time to go deeper. With the budget b for
        each, left = b (tokens + 1) - elapsed, it is t min(1, left / deeper), and 0 when nothing is left. So time that
        sure tokens save is there for unsure ones; an answer that falls behind takes less sure ones, and takes them as
        asked again when it has caught up.
        """
        asked = self.thresholds[exit]
        if self.budget_ms is None or asked > 1:
            return asked
        left = self.budget_ms * (pace.tokens + 1) - pace.elapsed_ms
        if left <= 0:
            return 0.0
        return asked * min(1.0, left / pace.deeper_ms) if pace.deeper_ms > 0 else asked

    def takes(self, exit: int, confidence: float, pace: AnswerPace) -> bool:
        """Whether a token of this confidence, in [0, 1], is taken from `exit`."""
        return confidence >= self.threshold(exit, pace)

    def never(self, exit: int) -> bool:
        """Whether `exit` need not be heard."""
        return self.thresholds[exit] > 1


def thresholds_of(given: Sequence[float], exits: Sequence[int], key: str) -> tuple[float, ...]:
    """One threshold for each of the `exits`, named by their layers; one is for all. ConfigError starts with `key`."""
    if len(given) not in (1, len(exits)):
        after = ", ".join(map(str, exits))
        raise ConfigError(
            f"{key}: {len(given)} thresholds, but the model has exits after layers {after}: "
            f"give {len(exits)}, one for each, or one for all"
        )
    if not all(threshold >= 0 for threshold in given):  # not so for NaN either
        raise ConfigError(f"{key}: thresholds must be at least 0, and above 1 where an exit is never to be taken")
    return tuple(given) * (len(exits) if len(given) == 1 else 1)


def never(exits: int) -> tuple[float, ...]:
    """Thresholds that take none of so many exits."""
    return (math.inf,) * exits
