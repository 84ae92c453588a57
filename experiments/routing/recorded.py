"""Answers that were recorded, way by way, to the same questions: what all policies are made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.routing import SideAnswers
from common.errors import ConfigError
from common.routing import features
from common.types import Collaboration
from edge.costs import work_of
from experiments.pass_rate.pass_measures import cloud_computed
from experiments.pass_rate.ways import EDGE_ONLY
from experiments.questions.workload import Question
from experiments.report.schema import AnswerRow
from experiments.setup.ablations import CLOUD_ONLY

Numbers = NDArray[np.floating[Any]]
Cost = Callable[[AnswerRow], float]

FEWEST = 4
"""Questions, of which each half has two: one more than a router could learn by heart."""


def billed(row: AnswerRow) -> float:
    """What a provider counts. Without steps: those of a stream that a stop string has ended are not all known."""
    report = Collaboration(drafted=row.drafted, cloud_calls=row.cloud_calls)
    report.tokens |= row.provenance
    return float(sum(work_of(report, row.prompt_tokens)))


COSTS: dict[str, tuple[str, Cost]] = {
    "computed": ("tokens that the cloud computed: drafts that it verified, and what it drew", cloud_computed),
    "billed": ("tokens as clouds are billed: prompts that it read, drafts, and what it drew", billed),
}
"""By name: in words, and of one answer. Each is taken relative to the cloud answering everything alone."""


@dataclass(frozen=True)
class RecordedAnswers:
    """N questions in W ways, [W, N]; `sides`: each question as the edge and the cloud alone answered it."""

    ways: list[str]
    quality: Numbers
    costs: dict[str, Numbers]
    sides: list[SideAnswers]

    @property
    def edge(self) -> int:
        return self.ways.index(EDGE_ONLY)

    @property
    def cloud(self) -> int:
        return self.ways.index(CLOUD_ONLY.name)

    @property
    def gates(self) -> list[int]:
        return [n for n in range(len(self.ways)) if n not in (self.edge, self.cloud)]

    @property
    def distance(self) -> float:
        """What the cloud alone is better by, on average."""
        return float(self.quality[self.cloud].mean() - self.quality[self.edge].mean())

    @property
    def tokens_seen(self) -> int:
        """So many confidences of the edge's first tokens are known of every answer that has so many tokens."""
        return min((len(each.confidences) for each in self.sides if len(each.confidences) < each.tokens[0]), default=64)


def recorded(
    rows: Mapping[str, Sequence[AnswerRow]], questions: Sequence[Question], max_tokens: int, wanted: Sequence[str]
) -> RecordedAnswers:
    """Of the `wanted` ways, and the questions that all of these have answered; of repeats the first.

    Raises ConfigError where edge only or cloud only is missing, or no question was answered by all.
    """
    if missing := {EDGE_ONLY, CLOUD_ONLY.name} - set(wanted):
        raise ConfigError(f"there are no answers of {min(missing)}: every way is compared with both sides alone")
    by_way = {name: _first(rows[name]) for name in wanted}
    common = sorted(set.intersection(*(set(found) for found in by_way.values())))
    if len(common) < FEWEST:
        raise ConfigError(f"{len(common)} questions were answered in all ways, and have a right answer: too few")
    table = [[by_way[name][n] for n in common] for name in wanted]
    return RecordedAnswers(
        ways=list(wanted),
        quality=np.array([[row.quality for row in line] for line in table], np.float64),
        costs={name: np.array([[of(row) for row in line] for line in table]) for name, (_, of) in COSTS.items()},
        sides=[
            _sides(by_way[EDGE_ONLY][n], by_way[CLOUD_ONLY.name][n], questions[n].prompt, max_tokens) for n in common
        ],
    )


def _first(rows: Sequence[AnswerRow]) -> dict[int, AnswerRow]:
    found: dict[int, AnswerRow] = {}
    for row in rows:
        if row.error is None and row.quality is not None:
            found.setdefault(row.question, row)
    return found


def _sides(edge: AnswerRow, cloud: AnswerRow, prompt: str, max_tokens: int) -> SideAnswers:
    return SideAnswers(
        prompt=features.of_prompt(prompt, edge.prompt_tokens),
        confidences=edge.confidences,
        finished=edge.tokens < max_tokens,
        tokens=(edge.tokens, cloud.tokens),
        worth=(edge.quality or 0.0, cloud.quality or 0.0),
    )
