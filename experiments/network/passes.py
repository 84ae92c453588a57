"""What a network sweep asks, in which order, and what it writes down. Knows no server.

A pass asks some questions in every way, in one cell (a network and a number of clients). The order of the ways is drawn
anew for each pass, so that each way is as often the first as any other. Every cell has its first pass before any has
its second, so that a sweep that is cut short has something in every cell.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from itertools import product

import msgspec

from experiments.counters.cloud import CloudCounts
from experiments.harness.load import TimedAnswer
from experiments.network.ways import WAYS, AnswerMode

FIRST_QUESTIONS = 8
PASS_QUESTIONS = 32
"""The first pass of a cell is short, so that every cell soon has something; the others cost fewer changes of network.

32 questions are minutes of work on two cores where the round trip is long.
"""


class NetworkCell(msgspec.Struct, frozen=True):
    """A network and a load: milliseconds, Mbit/s each way, and how many ask at once."""

    round_trip: float
    uplink: float
    clients: int


class SweepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides what is measured. `config` and `settings` (KEY=VALUE) are the servers', `data` has questions."""

    round_trips: list[float]
    uplinks: list[float]
    clients: list[int]
    ways: list[str]
    prompts: int
    repeats: int
    max_tokens: int
    seed: int
    config: str | None = None
    settings: list[str] = []
    data: str | None = None

    @property
    def cells(self) -> list[NetworkCell]:
        return [NetworkCell(*values) for values in product(self.round_trips, self.uplinks, self.clients)]

    @property
    def chosen_ways(self) -> list[AnswerMode]:
        return [WAYS[name] for name in self.ways]


class Pass(msgspec.Struct, frozen=True):
    """Questions `first` to `last` (excluded) in one cell, for the `repeat`th time."""

    cell: NetworkCell
    repeat: int
    first: int
    last: int

    def order(self, ways: Sequence[AnswerMode], seed: int) -> list[AnswerMode]:
        return random.Random(f"{seed} {self}").sample(ways, len(ways))

    @property
    def weight(self) -> float:
        """About how long it takes, compared with others: a few round trips an answer, and some work of two cores."""
        at_once = min(self.cell.clients, self.last - self.first)
        return (self.last - self.first) * (0.1 / min(at_once, 2) + 3 * self.cell.round_trip / 1000 / at_once)


class Block(msgspec.Struct, kw_only=True):
    """The answers of one pass in one way; `bytes_up` and `bytes_down` are what passed the network, headers too."""

    way: str
    seconds: float
    answers: list[TimedAnswer]
    counts: CloudCounts
    bytes_up: int
    bytes_down: int


class PassResult(msgspec.Struct):
    """A pass that is done, with a block for each way: one entry of the journal."""

    what: Pass
    blocks: list[Block]


def passes(plan: SweepPlan) -> Iterator[Pass]:
    """All passes, in the order in which they are made."""
    cut = {cell: cuts(plan.prompts, cell.clients) for cell in plan.cells}
    for repeat, turn, cell in product(range(plan.repeats), range(max(map(len, cut.values()))), plan.cells):
        if turn < len(cut[cell]):
            yield Pass(cell, repeat, *cut[cell][turn])


def cuts(count: int, clients: int) -> list[tuple[int, int]]:
    """So many questions in passes, each `first` to `last` (excluded); all but the last keep all clients busy."""
    first = max(FIRST_QUESTIONS, clients)
    ends = [0, *range(first, count, max(PASS_QUESTIONS, clients)), count]
    return list(itertools.pairwise(ends))
