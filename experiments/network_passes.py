"""What a network sweep asks, in which order, and what it writes down. Knows no server.

A pass asks some questions in every way, in one cell (a network and a number of clients). The order of the ways is drawn
anew for each pass, so that each way is as often the first as any other; all passes over the same questions come
before the next questions, so that a sweep that is cut short has something in every cell.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import product

import msgspec

from experiments.cloud_counts import CloudCounts
from experiments.load import Answer
from experiments.ways import WAYS, Way

PASS_QUESTIONS = 32
"""Questions of one pass at most: minutes of work on two cores where the round trip is long."""


class Cell(msgspec.Struct, frozen=True):
    """A network and a load: milliseconds, Mbit/s each way, and how many ask at once."""

    round_trip: float
    uplink: float
    clients: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides what is measured; `settings` are the servers' (KEY=VALUE), `data` a file of questions."""

    round_trips: list[float]
    uplinks: list[float]
    clients: list[int]
    ways: list[str]
    prompts: int
    repeats: int
    max_tokens: int
    seed: int
    settings: list[str] = []
    data: str | None = None

    @property
    def cells(self) -> list[Cell]:
        return [Cell(*values) for values in product(self.round_trips, self.uplinks, self.clients)]

    @property
    def chosen_ways(self) -> list[Way]:
        return [WAYS[name] for name in self.ways]


class Pass(msgspec.Struct, frozen=True):
    """Questions `first` to `last` (excluded) in one cell, for the `repeat`th time."""

    cell: Cell
    repeat: int
    first: int
    last: int

    def order(self, ways: Sequence[Way], seed: int) -> list[Way]:
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
    answers: list[Answer]
    counts: CloudCounts
    bytes_up: int
    bytes_down: int


class Done(msgspec.Struct):
    """A pass that is done, with a block for each way: one entry of the journal."""

    what: Pass
    blocks: list[Block]


def passes(plan: Plan) -> Iterator[Pass]:
    """All passes, in the order in which they are made."""
    firsts = range(0, plan.prompts, PASS_QUESTIONS)
    for repeat, first, cell in product(range(plan.repeats), firsts, plan.cells):
        yield Pass(cell, repeat, first, min(first + PASS_QUESTIONS, plan.prompts))
