"""Decides whether an exit's token is taken: by its confidence and by the time left for it. Pure: no clock, no engine.

After CE-CoLLM (arXiv 2411.02829): an exit whose confidence reaches its threshold gives the token; in the layers behind
it the token's position stays pending.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class AnswerPace:
    """How fast an answer has been so far: `tokens` in `elapsed_ms`, counted from the first exit's first prediction.

    `deeper_ms`: the mean time from this exit's prediction below the threshold until the token existed; 0 if unknown.
    """

    tokens: int = 0
    elapsed_ms: float = 0.0
    deeper_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class LatencyAwareEarlyExit:
    """One threshold for each exit, and the milliseconds that a token may take on average, or None without a budget.

    A threshold above 1 disables its exit, whatever the time.
    """

    thresholds: tuple[float, ...]
    budget_ms: float | None = None

    def threshold(self, exit: int, pace: AnswerPace) -> float:
        """The confidence that `exit`, counted from 0, must reach now.

        It is the configured threshold t while the answer has enough time left to go deeper. With a budget of b for
        each token, left = b (tokens + 1) - elapsed; the threshold is t min(1, left / deeper), and 0 when nothing is
        left. So time saved by confident tokens can be spent on the others. An answer that falls behind accepts less
        confident tokens, and returns to t when it has caught up.
        """
        configured = self.thresholds[exit]
        if self.budget_ms is None or configured > 1:
            return configured
        left = self.budget_ms * (pace.tokens + 1) - pace.elapsed_ms
        if left <= 0:
            return 0.0
        return configured * min(1.0, left / pace.deeper_ms) if pace.deeper_ms > 0 else configured

    def takes(self, exit: int, confidence: float, pace: AnswerPace) -> bool:
        """Whether a token of this confidence, in [0, 1], is taken from `exit`."""
        return confidence >= self.threshold(exit, pace)

    def disabled(self, exit: int) -> bool:
        """Whether `exit` is never taken, so that it need not be computed."""
        return self.thresholds[exit] > 1


def thresholds_of(given: Sequence[float], exits: Sequence[int], key: str) -> tuple[float, ...]:
    """One threshold for each of `exits` (named by their layers); a single one applies to all.

    Raises ConfigError, whose message begins with the config key `key`.
    """
    if len(given) not in (1, len(exits)):
        after = ", ".join(map(str, exits))
        raise ConfigError(
            f"{key}: {len(given)} thresholds, but the model has exits after layers {after}: "
            f"give {len(exits)}, one for each, or one for all"
        )
    if not all(threshold >= 0 for threshold in given):  # also refuses NaN
        raise ConfigError(f"{key}: thresholds must be at least 0; a threshold above 1 disables its exit")
    return tuple(given) * (len(exits) if len(given) == 1 else 1)


def disabled_exits(exits: int) -> tuple[float, ...]:
    """Thresholds that disable that many exits."""
    return (math.inf,) * exits
