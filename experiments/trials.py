"""Which configuration is asked which question, in which order, and what is written down of it. Knows no server.

For each question all configurations take their turns, in an order that is drawn anew for each, so that each is as often
the first as any other, and what slows the machine for a while slows them all. The order of the questions is drawn anew
for each repeat.
"""

import random
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from experiments.ablation_report import Counts, Row
from experiments.configurations import Configuration


class Network(Struct, frozen=True):
    """Between edge and cloud: milliseconds there and back, and Mbit/s each way."""

    round_trip_ms: float
    mbit: float


class Plan(Struct, frozen=True, kw_only=True):
    """All that decides what is measured.

    A trial asks `block` questions. `config` is the base that all configurations change,
    with its secrets left out; `prompts_sha256` is over all prompts. In front of each question there are `turns` earlier
    ones with their answers, as in a conversation.
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


class Trial(Struct, frozen=True):
    """These questions, by their numbers, asked of one configuration for the `repeat`th time."""

    configuration: str
    repeat: int
    questions: tuple[int, ...]


class Done(Struct, kw_only=True):
    """A trial that is done: one entry of the journal. `counts` are of all its answers together."""

    what: Trial
    seconds: float
    rows: list[Row]
    counts: Counts


def trials(plan: Plan) -> Iterator[Trial]:
    """All of them, in the order in which they are made."""
    names = [configuration.name for configuration in plan.configurations]
    for repeat in range(plan.repeats):
        order = random.Random(f"{plan.seed} {repeat}").sample(range(plan.questions), plan.questions)
        for begin in range(0, plan.questions, plan.block):
            block = tuple(order[begin : begin + plan.block])
            turns = random.Random(f"{plan.seed} {repeat} {block}").sample(names, len(names))
            yield from (Trial(name, repeat, block) for name in turns)
