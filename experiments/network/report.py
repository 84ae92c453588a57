"""Computes the report of a network sweep from its passes: a row for each answer mode in each cell."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from common.types import Collaboration, VerificationMode
from experiments.counters.cloud import CloudCounts
from experiments.harness.environment import environment
from experiments.harness.load import TimedAnswer, token_gaps
from experiments.harness.statistics import Pair, quantile, speed_ratio, typical_ratio
from experiments.network import bounds
from experiments.network.answer_modes import (
    ANSWER_MODES,
    CLOUD_ONLY,
    EDGE_DRAFTER,
    INSTEAD,
    WORTH,
    AnswerMode,
    BoundFormula,
)
from experiments.network.bounds import Costs
from experiments.network.passes import Block, NetworkCell, PassResult, SweepPlan
from experiments.network.schema import ModeRow, NetworkReport, Worth

TokenEnds = Callable[[str], Sequence[int]]
"""The end of each token of a text, in characters."""


@dataclass(frozen=True)
class Measured:
    """All blocks of one mode in one cell; `base`: cloud only's answers to the same questions, in the same order."""

    mode: AnswerMode
    blocks: list[Block]
    base: list[TimedAnswer]

    @cached_property
    def answers(self) -> list[TimedAnswer]:
        return [answer for block in self.blocks for answer in block.answers]

    @cached_property
    def counts(self) -> CloudCounts:
        return sum((block.counts for block in self.blocks), start=CloudCounts())

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    def total(self, name: str) -> float:
        """The sum of one field of the answers' collaboration records."""
        return float(sum(getattr(answer.collaboration, name) for answer in self.answers if answer.collaboration))

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per round, or per step of a continuous stream; each adds one token to the accepted ones."""
        times = self.total("cloud_steps") or self.total("rounds")
        return 1 + self.total("accepted") / times if self.total("drafted") else None

    @property
    def in_rounds(self) -> float:
        """The share of answers that were made in rounds."""
        return sum(bool(answer.collaboration and in_rounds(answer.collaboration)) for answer in self.answers) / len(
            self.answers
        )

    def costs(self, round_trip: float, step: float) -> Costs:
        """Mean costs of an answer. `round_trip` and `step` (a plain step of the cloud) are in seconds."""
        count, n = self.counts, len(self.answers)
        return Costs(
            round_trip=round_trip,
            tokens=self.tokens / n,
            step=step,
            draft=self.total("edge_latency_ms") / 1000 / n,
            rounds=self.total("rounds") / n,
            verify=count.verify_seconds / count.verifies if count.verifies else 0.0,
            steps=count.decode_steps / n + 1,
            draft_step=count.decode_seconds / count.decode_steps if count.decode_steps else step,
        )


def report(plan: SweepPlan, done: Sequence[PassResult], planned: int, token_ends: TokenEnds) -> NetworkReport:
    """`done`: the passes so far, of `planned` in all."""
    by_cell = defaultdict(list)
    for one in done:
        by_cell[one.what.cell].append(one)
    rows, worth, instead = [], [], []
    for cell in plan.cells:
        if by_cell[cell]:
            measured = measured_modes(by_cell[cell])
            rows += [row(cell, name, measured, token_ends) for name in plan.ways]
            worth += worths(cell, measured)
            instead += beside_peers(cell, measured)
    lossless = [r for r in rows if r.lossless and r.way != CLOUD_ONLY.name]
    return NetworkReport(
        plan=plan,
        environment=environment(),
        passes_done=len(done),
        passes_planned=planned,
        different_questions=len({at for one in done for at in range(one.what.first, one.what.last)}),
        lossless_answers=sum(r.answers for r in lossless),
        lossless_differences=sum(r.differences for r in lossless),
        rows=rows,
        worth=worth,
        instead=instead,
    )


def measured_modes(done: Iterable[PassResult]) -> dict[str, Measured]:
    """The blocks of each mode, by its name, from all passes of one cell."""
    blocks, base = defaultdict(list), []
    for one in done:
        for block in one.blocks:
            blocks[block.way].append(block)
            if block.way == CLOUD_ONLY.name:
                base += block.answers
    return {name: Measured(ANSWER_MODES[name], found, base) for name, found in blocks.items()}


def row(cell: NetworkCell, name: str, measured: dict[str, Measured], token_ends: TokenEnds) -> ModeRow:
    found = measured[name]
    answers, tokens, counts = found.answers, found.tokens, found.counts
    drafted, accepted, drawn = found.total("drafted"), found.total("accepted"), found.total("edge_drawn")
    gaps = [gap for answer in answers for gap in token_gaps(answer.arrivals, token_ends(answer.text))]
    return ModeRow(
        cell=cell,
        way=name,
        lossless=found.mode.lossless,
        answers=len(answers),
        tokens_per_answer=tokens / len(answers),
        speed=tokens / sum(answer.seconds for answer in answers),
        throughput=tokens / sum(block.seconds for block in found.blocks),
        first_token_ms=milliseconds(quantile([answer.first_token for answer in answers], 0.5)),
        gap_p50_ms=milliseconds(quantile(gaps, 0.5)),
        gap_p95_ms=milliseconds(quantile(gaps, 0.95)),
        longest_gap_ms=milliseconds(quantile(gaps, 1.0)),
        bytes_up=sum(block.bytes_up for block in found.blocks) / len(answers),
        bytes_down=sum(block.bytes_down for block in found.blocks) / len(answers),
        body_bytes_up=found.total("bytes_up") / len(answers),
        body_bytes_down=found.total("bytes_down") / len(answers),
        steps_per_token=counts.steps / tokens,
        computed_per_token=(counts.computed + counts.drafted - counts.accepted) / tokens,
        acceptance_length=found.acceptance_length,
        thrown_away=1 - accepted / drafted if drafted else None,
        edge_thrown_away=found.total("edge_wasted") / drawn if drawn else None,
        in_rounds=found.in_rounds,
        differences=sum(not same(*pair) for pair in zip(answers, found.base, strict=True)),
        degraded=sum(bool(answer.collaboration and answer.collaboration.degraded) for answer in answers),
        over_cloud_only=speed_ratio(pairs(answers, found.base)),
        typical_over_cloud_only=typical_ratio(pairs(answers, found.base)),
        allowed=allowed(cell, name, measured),
    )


def in_rounds(told: Collaboration) -> bool:
    """Whether the cloud verified round by round; a continuous stream reports itself as one round."""
    return told.rounds > 0 and told.way != VerificationMode.CONTINUOUS


def same(one: TimedAnswer, other: TimedAnswer) -> bool:
    return (one.text, one.finish_reason, one.tokens) == (other.text, other.finish_reason, other.tokens)


def pairs(answers: Sequence[TimedAnswer], base: Sequence[TimedAnswer]) -> list[Pair]:
    return [Pair(a.tokens, a.seconds, b.tokens, b.seconds) for a, b in zip(answers, base, strict=True)]


def worths(cell: NetworkCell, measured: dict[str, Measured]) -> list[Worth]:
    """For each part the speed with it over the speed without it, where both modes ran."""
    found = []
    for part, candidates in WORTH.items():
        for have, lack in candidates:
            if have in measured and lack in measured:
                found.append(Worth(cell, part, speed_ratio(pairs(measured[have].answers, measured[lack].answers))))
    return found


def beside_peers(cell: NetworkCell, measured: dict[str, Measured]) -> list[Worth]:
    """The speed of an edge that drafts losslessly over each of what might be picked in its place, where both ran."""
    if EDGE_DRAFTER not in measured:
        return []
    ours = measured[EDGE_DRAFTER].answers
    return [Worth(cell, name, speed_ratio(pairs(ours, measured[name].answers))) for name in INSTEAD if name in measured]


def allowed(cell: NetworkCell, name: str, measured: dict[str, Measured]) -> float | None:
    """The highest ratio of speeds over cloud only that the costs measured in this cell allow this mode."""
    plain = measured[CLOUD_ONLY.name].counts
    if not plain.decode_steps:
        return None
    found, step = measured[name], plain.decode_seconds / plain.decode_steps
    costs = found.costs(cell.round_trip / 1000, step)
    match found.mode.form:
        case BoundFormula.NONE:
            return None
        case BoundFormula.PLAIN:
            return 1.0
        case BoundFormula.CONTINUOUS:
            return bounds.plain_seconds(costs) / bounds.continuous_seconds(costs)
        case BoundFormula.ROUNDS | BoundFormula.ROUNDS_AHEAD as form:
            seconds = bounds.rounds_seconds(costs, ahead=form == BoundFormula.ROUNDS_AHEAD)
            return bounds.plain_seconds(costs) / seconds if seconds else None
    best = [allowed(cell, other, measured) or 0.0 for other in ("rounds", "continuous") if other in measured]
    if found.in_rounds == 1:
        best.append(bounds.plain_seconds(costs) / bounds.rounds_seconds(costs, ahead=True))
    return max([1.0, *best]) if best else None  # a mode that was not measured has no costs


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
