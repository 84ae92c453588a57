"""Numbers that are learned from a series and forget its past: a mean, a ratio and a line."""

import math
from dataclasses import dataclass

from common.decoding.acceptance import MEMORY

LONG_MEMORY = 0.99
"""A memory like MEMORY, in which about the last hundred count."""
TYPICAL_ANSWER = 32.0
"""Tokens."""
LEAST_SPREAD = 1e-9


@dataclass(slots=True)
class Mean:
    """An exponentially weighted mean; None before the first value."""

    value: float | None = None

    def add(self, value: float) -> None:
        self.value = value if self.value is None else MEMORY * self.value + (1 - MEMORY) * value


@dataclass(slots=True)
class Gain:
    """Tokens observed over tokens expected, weighted by answer length; 1 before the first observation."""

    observed: float = TYPICAL_ANSWER
    expected: float = TYPICAL_ANSWER

    def add(self, observed: float, expected: float) -> None:
        self.observed += (1 - MEMORY) * (observed - self.observed)
        self.expected += (1 - MEMORY) * (expected - self.expected)

    def forget(self) -> None:
        """Moves one step back towards 1, so that a mode not used for long is tried again."""
        self.observed += (1 - LONG_MEMORY) * (self.expected - self.observed)

    @property
    def value(self) -> float:
        return self.observed / self.expected


@dataclass(slots=True)
class LinearEstimate:
    """y = base + slope * x, both at least 0, by exponentially weighted least squares.

    `prior` is the slope relative to the base, used while all x so far are (nearly) the same; `largest` the most that it
    can be.
    """

    prior: float = 0.0
    largest: float = math.inf
    _weight: float = 0.0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    def add(self, x: float, y: float) -> None:
        self._weight = MEMORY * self._weight + 1.0
        share = 1.0 / self._weight
        dx, dy = x - self._x, y - self._y
        self._x += share * dx
        self._y += share * dy
        self._xx += share * (dx * (x - self._x) - self._xx)
        self._xy += share * (dx * (y - self._y) - self._xy)

    @classmethod
    def of(cls, fresh: "LinearEstimate", sums: tuple[float, float, float, float, float]) -> "LinearEstimate":
        """An estimate like `fresh` that has these `sums`."""
        return cls(fresh.prior, fresh.largest, *sums)

    @property
    def sums(self) -> tuple[float, float, float, float, float]:
        """All that it remembers: weight, means of x and y, variance of x, covariance."""
        return self._weight, self._x, self._y, self._xx, self._xy

    @property
    def measured(self) -> bool:
        return self._weight > 0

    @property
    def slope(self) -> float:
        if self._xx <= LEAST_SPREAD * (1.0 + self._x * self._x):
            return self.prior * self._y / (1.0 + self.prior * self._x)
        most = self._x + 1 / self.largest
        return min(max(self._xy / self._xx, 0.0), self._y / most if most else 0.0)

    def at(self, x: float) -> float:
        return self._y + self.slope * (x - self._x)
