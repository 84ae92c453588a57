"""Which configuration is asked which question, in which order, and what is written down of it. Knows no server.

For each question all configurations take their turns, in an order that is drawn anew for each, so that each is as often
the first as any other, and what slows the machine for a while slows them all. The order of the questions is drawn anew
for each repeat.
"""

import random
from collections.abc import Iterator
from itertools import product
from typing import Any

from msgspec import Struct

from experiments.report.schema import AnswerRow, Counts
from experiments.setup.configurations import Configuration


class Network(Struct, frozen=True):
    """Between edge and cloud: milliseconds there and back, and Mbit/s each way."""

    round_trip_ms: float
    mbit: float


class LoadCondition(Struct, frozen=True):
    """A network (None: as it is) and how many clients ask at once."""

    network: Network | None
    clients: int = 1


class ExperimentPlan(Struct, frozen=True, kw_only=True):
    """All that decides what is measured.

    A trial asks `block` questions. With `cells`, each is asked in all of them, and the first is what the report is
    about. `baseline`: the configuration that others are compared with; "": the first. `config` is the base that all
    configurations change, with its secrets left out; `prompts_sha256` is over all prompts. In front of each question
    there are `turns` earlier ones with their answers, as in a conversation.
    """

    configurations: list[Configuration]
    data: str
    prompts_sha256: str
    questions: int
    repeats: int
    max_tokens: int
    temperature: float
    seed: int
    network: Network | None
    config: dict[str, Any]
    turns: int = 0
    block: int = 1
    baseline: str = ""
    cells: list[LoadCondition] = []
    warm: bool = True
    """Whether caches are made equally warm for each question (see runner.py); not where nothing is kept."""

    @property
    def places(self) -> list[LoadCondition]:
        return self.cells or [LoadCondition(self.network)]


class Trial(Struct, frozen=True):
    """These questions, by their numbers, asked of one configuration for the `repeat`th time, in one of the cells."""

    configuration: str
    repeat: int
    questions: tuple[int, ...]
    cell: int = 0


class TrialResult(Struct, kw_only=True):
    """A trial that is done: one entry of the journal. `counts` are of all its answers together."""

    what: Trial
    seconds: float
    rows: list[AnswerRow]
    counts: Counts


def trials(plan: ExperimentPlan) -> Iterator[Trial]:
    """All of them, in the order in which they are made."""
    names = [configuration.name for configuration in plan.configurations]
    for repeat, (number, cell) in product(range(plan.repeats), enumerate(plan.places)):
        order = random.Random(f"{plan.seed} {repeat}").sample(range(plan.questions), plan.questions)
        size = plan.block if cell.clients == 1 else plan.questions  # many clients need many questions
        for begin in range(0, plan.questions, size):
            block = tuple(order[begin : begin + size])
            turns = random.Random(f"{plan.seed} {repeat} {block}").sample(names, len(names))
            yield from (Trial(name, repeat, block, number) for name in turns)
