"""The plan of a network sweep, its passes in order, and the journal entry of each pass.

A pass asks some questions in every answer mode, in one cell (a network and a number of clients). The order of the modes
is shuffled for each pass, so that each mode comes first equally often. Every cell has its first pass before any cell
has its second, so that an interrupted sweep has results in every cell.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from itertools import product

import msgspec

from experiments.counters.cloud import CloudCounts
from experiments.harness.load import TimedAnswer
from experiments.network.answer_modes import ANSWER_MODES, AnswerMode
from experiments.report.words import counted

FIRST_QUESTIONS = 8
PASS_QUESTIONS = 32
"""The first pass of a cell is short, so that every cell soon has results; longer passes change the network less often.

With a long round trip, 32 questions take minutes on two cores.
"""


class NetworkCell(msgspec.Struct, frozen=True):
    """A network and a load: round trip in ms, bandwidth in Mbit/s in each direction, number of concurrent clients."""

    round_trip: float
    uplink: float
    clients: int

    @property
    def title(self) -> str:
        """No line breaks between a number and its unit."""
        clients = counted(self.clients, "client").replace(" ", "\u00a0")
        return f"{self.round_trip:g}\u00a0ms, {self.uplink:g}\u00a0Mbit/s, {clients}"


class SweepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides what is measured. `ways`: names of answer modes; `prompts`: questions in each cell.

    `config` (a file) and `settings` (KEY=VALUE) configure the servers; `data` names questions (datasets.py). `pinned`:
    edges and clients have a core of their own. Above a `temperature` of 0 answers are sampled, without a seed: one
    would keep the policy from using what it has measured.
    """

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
    pinned: bool = False
    temperature: float = 0.0

    @property
    def cells(self) -> list[NetworkCell]:
        return [NetworkCell(*values) for values in product(self.round_trips, self.uplinks, self.clients)]

    @property
    def modes(self) -> list[AnswerMode]:
        return [ANSWER_MODES[name] for name in self.ways]


class Pass(msgspec.Struct, frozen=True):
    """Questions `first` to `last` (excluded) in one cell, for the `repeat`th time."""

    cell: NetworkCell
    repeat: int
    first: int
    last: int

    def order(self, modes: Sequence[AnswerMode], seed: int) -> list[AnswerMode]:
        return random.Random(f"{seed} {self}").sample(modes, len(modes))

    @property
    def weight(self) -> float:
        """Its duration relative to other passes: a few round trips per answer, and work shared by two cores."""
        at_once = min(self.cell.clients, self.last - self.first)
        return (self.last - self.first) * (0.1 / min(at_once, 2) + 3 * self.cell.round_trip / 1000 / at_once)


class Block(msgspec.Struct, kw_only=True):
    """The answers of one pass in one mode (`way`); bytes are those on the network, headers included."""

    way: str
    seconds: float
    answers: list[TimedAnswer]
    counts: CloudCounts
    bytes_up: int
    bytes_down: int


class PassResult(msgspec.Struct):
    """A finished pass with a block for each mode: one entry of the journal."""

    what: Pass
    blocks: list[Block]


def passes(plan: SweepPlan) -> Iterator[Pass]:
    """All passes, in the order in which they run."""
    ranges = {cell: question_ranges(plan.prompts, cell.clients) for cell in plan.cells}
    for repeat, turn, cell in product(range(plan.repeats), range(max(map(len, ranges.values()))), plan.cells):
        if turn < len(ranges[cell]):
            yield Pass(cell, repeat, *ranges[cell][turn])


def question_ranges(count: int, clients: int) -> list[tuple[int, int]]:
    """Divides `count` questions into passes, `first` to `last` (excluded); all but the last keep every client busy."""
    first = max(FIRST_QUESTIONS, clients)
    ends = [0, *range(first, count, max(PASS_QUESTIONS, clients)), count]
    return list(itertools.pairwise(ends))
