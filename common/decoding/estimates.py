"""What an edge knows of its network, its own speed and its cloud, from the answers so far. Knows no clock."""

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.types import VerificationMode

MEMORY = 0.95
"""What an observation leaves of the weight of those before it: about the last twenty count."""
LONG_MEMORY = 0.99
"""The same where about the last hundred count."""
TYPICAL_ANSWER = 32.0
"""Tokens."""
PLACES = 16
"""Places in a run of right tokens that are told apart; what comes after them is like the last."""
TOKEN_STEPS = 0.06
"""What verifying one more token costs, in steps without drafts, until it is measured."""
LEAST_SPREAD = 1e-9


@dataclass(slots=True)
class Mean:
    """An exponentially weighted mean; None before the first value."""

    value: float | None = None

    def add(self, value: float) -> None:
        self.value = value if self.value is None else MEMORY * self.value + (1 - MEMORY) * value


@dataclass(slots=True)
class Gain:
    """What came over what was expected of it, long answers counting more; 1 before anything came."""

    came: float = TYPICAL_ANSWER
    expected: float = TYPICAL_ANSWER

    def add(self, came: float, expected: float) -> None:
        self.came += (1 - MEMORY) * (came - self.came)
        self.expected += (1 - MEMORY) * (expected - self.expected)

    def forget(self) -> None:
        """A step back to what is expected: a way not tried for long may be worth another try."""
        self.came += (1 - LONG_MEMORY) * (self.expected - self.came)

    @property
    def value(self) -> float:
        return self.came / self.expected


@dataclass(slots=True)
class LinearEstimate:
    """y = base + slope * x, both at least 0, by exponentially weighted least squares.

    `prior` is the slope in shares of the mean y, used while all x seen are (nearly) the same.
    """

    prior: float = 0.0
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

    @property
    def known(self) -> bool:
        return self._weight > 0

    @property
    def slope(self) -> float:
        if self._xx <= LEAST_SPREAD * (1.0 + self._x * self._x):
            return self.prior * self._y / (1.0 + self.prior * self._x)
        return min(max(self._xy / self._xx, 0.0), self._y / self._x if self._x else 0.0)

    def at(self, x: float) -> float:
        return self._y + self.slope * (x - self._x)


@dataclass(slots=True)
class Acceptance:
    """How often the cloud accepts a draft token: by its place in a run, and by its confidence c.

    `chances` by place: that a token is right when all before it in its run were. They grow along a run, as the edge
    knows some answers and not others: a mean over all tokens would have long runs rarer than they are.

    By confidence it is c ** power; `power` below 1: the edge is too modest; above 1: it is too sure of itself.
    """

    chances: list[float] = field(default_factory=lambda: [0.8] * PLACES)
    power: float = 1.0
    _right: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self._accumulate()

    def right(self, n: int) -> float:
        """How often the first n tokens of a draft are all right."""
        return self._right[n] if n <= PLACES else self._right[PLACES] * self.chances[-1] ** (n - PLACES)

    def add(self, confidences: Sequence[float], accepted: int, run: int = 0) -> None:
        """The verdict on a draft whose first `accepted` tokens were right, after a run of `run` that were."""
        for place, confidence in enumerate(confidences[: accepted + 1]):
            right = float(place < accepted)
            at = min(run + place, PLACES - 1)
            self.chances[at] += (1 - MEMORY) * (right - self.chances[at])
            # A step of gradient descent on the squared error, bounded so that one surprise does not upset it.
            expected = confidence**self.power
            self.power = min(max(self.power * (1.0 + 0.02 * (expected - right)), 0.2), 5.0)
        self._accumulate()

    def _accumulate(self) -> None:
        self._right = list(itertools.accumulate(self.chances, operator.mul, initial=1.0))


@dataclass(slots=True)
class Estimates:
    """Fed by every answer of one edge server, read by the policy; belongs to one event loop. Times in seconds."""

    network: LinearEstimate = field(default_factory=LinearEstimate)
    """Round trip at no bytes, and seconds per byte (both ways together)."""
    draft: Mean = field(default_factory=Mean)
    """Per token drafted."""
    verify: LinearEstimate = field(default_factory=lambda: LinearEstimate(TOKEN_STEPS))
    """One step of the cloud by the number of draft tokens in it, as an answer of its own sees it."""
    acceptance: Acceptance = field(default_factory=Acceptance)
    active: int = 0
    """Answers under way that the cloud takes part in."""
    bytes_per_round: Mean = field(default_factory=Mean)
    gains: dict[VerificationMode, Gain] = field(
        default_factory=lambda: {VerificationMode.ROUNDS: Gain(), VerificationMode.CONTINUOUS: Gain()}
    )
    """Of lossless answers that were alone when they began: their speed over what `goodput` expects."""

    def came(self, way: VerificationMode, tokens: int, expected: float) -> None:
        """An answer's tokens, and how many were expected in that time."""
        self.gains[way].add(tokens, expected)
        self.gains[VerificationMode.CONTINUOUS if way is VerificationMode.ROUNDS else VerificationMode.ROUNDS].forget()

    def round_came(self, drafted: int, latency: float, cloud: float, payload: int) -> None:
        """One verify of `drafted` tokens: seconds in all, seconds in the cloud, bytes up and down."""
        self.network.add(payload, max(0.0, latency - cloud))
        self.bytes_per_round.add(payload)
        self.verify.add(drafted, cloud)

    def stream_came(self, steps: int, drafted: int, seconds: float) -> None:
        """One continuous answer: engine steps, draft tokens verified in them, seconds from first to last token."""
        if steps > 1:
            self.verify.add(drafted / steps, seconds / (steps - 1))

    @property
    def round_trip(self) -> float:
        """Seconds of network around a verify."""
        return self.network.at(self.bytes_per_round.value or 0.0) if self.network.known else 0.0

    @property
    def draft_seconds(self) -> float:
        return self.draft.value or 0.0

    @property
    def step_seconds(self) -> float:
        """One step of the cloud without drafts."""
        return self.verify.at(0.0)

    @property
    def token_steps(self) -> float:
        """What one more draft token adds to a step of the cloud, in plain steps, when all answers under way add one."""
        step = self.step_seconds
        alone = self.verify.slope / step if step > 0 else TOKEN_STEPS
        return alone * max(1, self.active)
