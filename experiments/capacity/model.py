"""A model of one cloud under many clients: steps that take some seconds, and some more for each client in them.

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

import numpy as np

from experiments.fleet.load import DraftedAnswer, DraftedRound

ROUNDS = 40
"""Of each simulated client, in the mean."""
FEWEST_ROUNDS = 1500
"""Of all simulated clients together."""
SHARES = np.geomspace(0.002, 1.0, 40)
"""Of a lone client's step: what a further client adds."""
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


STREAMING = ClientWork([DraftedAnswer([], [DraftedRound([], [0])])], 0.0)
"""A client that waits for the next token, and for nothing else."""


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step: `step`, and `each` for every client in it."""

    step: float
    each: float

    def seconds(self, clients: int) -> float:
        return self.step + self.each * clients


def speed(work: ClientWork, cost: StepCost, clients: int, seed: int = 0) -> float:
    """Tokens a second of one client, if so many share the cloud."""
    if not work.verified:
        return work.tokens / work.pause
    chance = random.Random(seed)
    doing = [_rounds(work, chance) for _ in range(clients)]
    ready = [(pause, number, tokens) for number, (pause, tokens) in enumerate(map(next, doing))]
    heapq.heapify(ready)
    now, committed = 0.0, 0
    for _ in range(max(ROUNDS, FEWEST_ROUNDS // clients)):
        left = clients  # so many rounds, whoever has them
        while left > 0:
            now = max(now, ready[0][0])
            served = []
            while ready and ready[0][0] <= now:
                served.append(heapq.heappop(ready))
            now += cost.seconds(len(served))
            left -= len(served)
            for _, number, tokens in served:
                committed += tokens
                pause, following = next(doing[number])
                heapq.heappush(ready, (now + pause, number, following))
    return committed / now / clients


def _rounds(work: ClientWork, chance: random.Random) -> Iterator[tuple[float, int]]:
    """For each question to the cloud, the pause before it, and the tokens that come with its answer."""
    pause, tokens = 0.0, 0
    while True:
        for one in chance.choice(work.answers).rounds:
            pause += work.draft * one.drafted
            tokens += one.tokens
            if one.committed:
                yield pause, tokens
                pause, tokens = 0.0, 0


def fit(work: ClientWork, measured: dict[int, float]) -> StepCost:
    """The cost of steps by tokens a second of one client, for each number of clients; one client must be among them.

    A lone client's speed says how long its step takes; what a further client adds is chosen by the least squares of
    relative errors.
    """
    alone = max(1e-6, (work.tokens / measured[1] - work.pause) / max(1, work.verified))

    def error(share: float) -> float:
        cost = StepCost((1 - share) * alone, share * alone)
        return sum(math.log(speed(work, cost, clients) / found) ** 2 for clients, found in measured.items())

    share = float(min(SHARES, key=error))
    return StepCost((1 - share) * alone, share * alone)


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
