"""Plans an experiment: which configuration answers which question in which order, and what is recorded.

For each question all configurations take turns in a newly drawn order, so that each is first equally often and a slow
phase of the machine slows all of them. The order of the questions is drawn anew for each repeat.
"""

import random
from collections.abc import Iterator
from itertools import product
from typing import Any

from msgspec import Struct

from experiments.report.schema import AnswerRow, Counts
from experiments.setup.configurations import Configuration


class Network(Struct, frozen=True):
    """The simulated network between edge and cloud: round trip in milliseconds, bandwidth in Mbit/s each way."""

    round_trip_ms: float
    mbit: float


class LoadCondition(Struct, frozen=True):
    """A network (None: not simulated) and the number of concurrent clients."""

    network: Network | None
    clients: int = 1


class ExperimentPlan(Struct, frozen=True, kw_only=True):
    """Everything that decides what is measured; the head of the journal.

    A trial asks `block` questions. `cells`: load conditions; every question is asked in each, and the report is about
    the first. `baseline`: the configuration that others are compared with; "": the first one. `config`: the base that
    all configurations change, without its secrets. `prompts_sha256`: over all prompts. `turns`: earlier questions with
    their answers before each question, as in a conversation.
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
    raw: bool = False
    """Whether models continue the prompts as they are; False: each prompt is a user's turn of a chat."""
    warm: bool = True
    """Whether caches are made equally warm for each question (see runner.py); False where servers cache nothing."""

    @property
    def conditions(self) -> list[LoadCondition]:
        """The load conditions; without `cells` the plan's network with one client."""
        return self.cells or [LoadCondition(self.network)]


class Trial(Struct, frozen=True):
    """Questions, by number, for one configuration. `repeat` and `cell`, the load condition, count from 0."""

    configuration: str
    repeat: int
    questions: tuple[int, ...]
    cell: int = 0


class TrialResult(Struct, kw_only=True):
    """A finished trial `what`: one entry of the journal. `counts` are of all its answers together."""

    what: Trial
    seconds: float
    rows: list[AnswerRow]
    counts: Counts


def trials(plan: ExperimentPlan) -> Iterator[Trial]:
    """All trials of a plan in their order."""
    names = [configuration.name for configuration in plan.configurations]
    for repeat, (number, condition) in product(range(plan.repeats), enumerate(plan.conditions)):
        order = random.Random(f"{plan.seed} {repeat}").sample(range(plan.questions), plan.questions)
        size = plan.block if condition.clients == 1 else plan.questions  # many clients need many questions
        for begin in range(0, plan.questions, size):
            block = tuple(order[begin : begin + size])
            turns = random.Random(f"{plan.seed} {repeat} {block}").sample(names, len(names))
            yield from (Trial(name, repeat, block, number) for name in turns)
