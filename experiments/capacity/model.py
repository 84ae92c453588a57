"""A model of one cloud under many clients: steps that take some seconds, and some more for each token in them.

Each client repeats recorded answers: it drafts, then waits until a step is free, which takes all who wait. So the model
is the measurement with the cloud replaced by two numbers. A cloud that answers alone, or speculates by itself, has
clients that never pause.
"""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from experiments.fleet.load import DraftedAnswer, DraftedRound

ROUNDS = 40
"""Of each simulated client, in the mean."""
FEWEST_ROUNDS = 1500
"""Of all simulated clients together."""
SHARES = np.geomspace(0.002, 1.0, 25), np.geomspace(0.8, 1.25, 7)
"""What the tokens of a lone client take of its step: tried first, and then around the best of them."""
SCALES = np.geomspace(0.6, 1.6, 9), np.geomspace(0.94, 1.065, 7)
"""The same for its step's seconds, over those that its speed alone says."""
MOST_CLIENTS = 4096


@dataclass(frozen=True)
class ClientWork:
    """What each client does: recorded answers, over and over, drafting a token in `draft` seconds."""

    answers: Sequence[DraftedAnswer]
    draft: float

    @property
    def rounds(self) -> list[DraftedRound]:
        return [one for answer in self.answers for one in answer.rounds]

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.rounds)

    @property
    def pause(self) -> float:
        """Seconds of drafting in all answers."""
        return self.draft * sum(one.drafted for one in self.rounds)

    @property
    def verified(self) -> int:
        """How often all answers ask the cloud."""
        return sum(bool(one.committed) for one in self.rounds)

    @property
    def computed(self) -> int:
        """Tokens that the cloud computes for all answers: draft tokens, and one of its own with them."""
        return sum(_computed(one) for one in self.rounds if one.committed)


STREAMING = ClientWork([DraftedAnswer([], [DraftedRound([], [0])])], 0.0)
"""A client that waits for the next token, and for nothing else."""


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step: `step`, and `each` for every token in it."""

    step: float
    each: float

    def seconds(self, tokens: int) -> float:
        return self.step + self.each * tokens


def speed(work: ClientWork, cost: StepCost, clients: int, seed: int = 0) -> float:
    """Tokens a second of one client, if so many share the cloud."""
    if not work.verified:
        return work.tokens / work.pause
    chance = random.Random(seed)
    doing = [_rounds(work, chance) for _ in range(clients)]
    ready = [(one.pause, number, one) for number, one in enumerate(map(next, doing))]
    heapq.heapify(ready)
    now, committed = 0.0, 0
    for _ in range(max(ROUNDS, FEWEST_ROUNDS // clients)):
        left = clients  # so many rounds, whoever has them
        while left > 0:
            now = max(now, ready[0][0])
            served = []
            while ready and ready[0][0] <= now:
                served.append(heapq.heappop(ready))
            now += cost.seconds(sum(one.computed for _, _, one in served))
            left -= len(served)
            for _, number, one in served:
                committed += one.tokens
                following = next(doing[number])
                heapq.heappush(ready, (now + following.pause, number, following))
    return committed / now / clients


def _computed(one: DraftedRound) -> int:
    return len(one.draft) + 1


class _Asked(NamedTuple):
    """One question to the cloud: the pause before it, the tokens that come with its answer, and those computed."""

    pause: float
    tokens: int
    computed: int


def _rounds(work: ClientWork, chance: random.Random) -> Iterator[_Asked]:
    pause, tokens = 0.0, 0
    while True:
        for one in chance.choice(work.answers).rounds:
            pause += work.draft * one.drafted
            tokens += one.tokens
            if one.committed:
                yield _Asked(pause, tokens, _computed(one))
                pause, tokens = 0.0, 0


def fit(work: ClientWork, measured: dict[int, float]) -> StepCost:
    """The cost of steps by tokens a second of one client, for each number of clients; one client must be among them.

    By the least squares of relative errors, over a grid and then a finer one around the best of it.
    """
    seconds = max(1e-6, (work.tokens / measured[1] - work.pause) / max(1, work.verified))
    share = 1.0
    each = work.computed / max(1, work.verified)

    def cost(seconds: float, share: float) -> StepCost:
        return StepCost((1 - share) * seconds, share * seconds / max(1.0, each))

    def error(found: tuple[float, float]) -> float:
        return sum(math.log(speed(work, cost(*found), n) / wanted) ** 2 for n, wanted in measured.items())

    for scales, shares in zip(SCALES, SHARES, strict=True):
        tried = itertools.product((seconds * scales).tolist(), np.minimum(1.0, share * shares).tolist())
        seconds, share = min(tried, key=error)
    return cost(seconds, share)


def clients_at(level: float, speed_of: Callable[[int], float]) -> int:
    """The most clients of whom each has at least this speed; MOST_CLIENTS at most, 0 if not even one has."""
    if speed_of(1) < level:
        return 0
    enough, too_many = 1, 2
    while too_many <= MOST_CLIENTS and speed_of(too_many) >= level:
        enough, too_many = too_many, 2 * too_many
    too_many = min(too_many, MOST_CLIENTS + 1)
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        enough, too_many = (middle, too_many) if speed_of(middle) >= level else (enough, middle)
    return enough


def between(level: float, measured: dict[int, float]) -> float | None:
    """The number of clients at which the measured speed falls to `level`, on a straight line between two counts.

    None if it never does; 0 if not even the fewest clients have it.
    """
    counts = sorted(measured)
    if measured[counts[0]] < level:
        return 0.0
    for fewer, more in itertools.pairwise(counts):
        if measured[more] < level:
            return fewer + (more - fewer) * (measured[fewer] - level) / (measured[fewer] - measured[more])
    return None
