"""From what a network sweep has asked to what it says: a row for each way in each cell. Knows no server, no screen."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec

from common.types import Collaboration, VerificationMode
from experiments.counters.cloud import CloudCounts
from experiments.harness.environment import environment
from experiments.harness.load import TimedAnswer, token_gaps
from experiments.harness.statistics import Pair, SpeedUp, quantile, speed_ratio, typical_ratio
from experiments.network import bounds
from experiments.network.bounds import Costs
from experiments.network.passes import Block, NetworkCell, PassResult, SweepPlan
from experiments.network.ways import CLOUD_ONLY, WAYS, WORTH, AnswerMode, BoundFormula
from experiments.report.schema import Environment

TokenEnds = Callable[[str], Sequence[int]]
"""Where each token of a text ends, in characters."""


class ModeRow(msgspec.Struct, kw_only=True):
    """One way in one cell.

    `speed`: tokens per second as one client sees it (all tokens over all seconds from question to end); `throughput`:
    tokens per second of all clients together. `first_token_ms`: median time to the first token; `gap_p50_ms`,
    `gap_p95_ms`, `longest_gap_ms`: between a token and the next, 0 where they came together. Bytes are of one answer:
    what passed the network, and the message bodies in it as the edge counts them. `steps_per_token`: engine steps of
    the cloud over tokens of the answers; `computed_per_token`: tokens that the cloud computed (prompts and rejected
    drafts included) over the same. `acceptance_length`: tokens that a round brings, or a step of the continuous way.
    `thrown_away`: the share of verified draft tokens that were rejected; `edge_thrown_away`: the share of all that
    the edge drew, ahead too, that is not in the answer. `in_rounds`: the share of answers that came about in rounds.
    `differences`: answers that are not cloud only's to the same question, of `answers`; must be 0 if `lossless`.
    `degraded`: answers that went on without the cloud. `over_cloud_only`: ratio of speeds; `typical_over_cloud_only`:
    the median of the questions' own ratios, which a stall in one of them does not move; `allowed`: the ratio at best
    (experiments/network/bounds.py). What a way does not have is null.
    """

    cell: NetworkCell
    way: str
    lossless: bool
    answers: int
    tokens_per_answer: float
    speed: float
    throughput: float
    first_token_ms: float | None
    gap_p50_ms: float | None
    gap_p95_ms: float | None
    longest_gap_ms: float | None
    bytes_up: float
    bytes_down: float
    body_bytes_up: float
    body_bytes_down: float
    steps_per_token: float
    computed_per_token: float
    acceptance_length: float | None
    thrown_away: float | None
    edge_thrown_away: float | None
    in_rounds: float
    differences: int
    degraded: int
    over_cloud_only: SpeedUp
    typical_over_cloud_only: float
    allowed: float | None


class Worth(msgspec.Struct):
    """What a part is worth in a cell: the speed with it over the speed without it."""

    cell: NetworkCell
    part: str
    ratio: SpeedUp


class NetworkReport(msgspec.Struct, kw_only=True):
    """report.json: what was asked, where, and what came of it."""

    plan: SweepPlan
    environment: Environment
    passes_done: int
    passes_planned: int
    different_questions: int
    lossless_answers: int
    """Answers in a lossless way, cloud only itself not counted."""
    lossless_differences: int
    """How many of them are not cloud only's answer to the same question."""
    rows: list[ModeRow]
    worth: list[Worth]


@dataclass(frozen=True)
class Measured:
    """All that one way gave in one cell; `answers` and `base` (cloud only's) are those to the same questions."""

    way: AnswerMode
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
        """The sum of one number that the answers tell."""
        return float(sum(getattr(answer.collaboration, name) for answer in self.answers if answer.collaboration))

    @property
    def acceptance_length(self) -> float | None:
        """Tokens that each round brings, or each step of the cloud's own stream; either adds one to what it accepts."""
        times = self.total("cloud_steps") or self.total("rounds")
        return 1 + self.total("accepted") / times if self.total("drafted") else None

    @property
    def in_rounds(self) -> float:
        """The share of answers that came about in rounds."""
        return sum(bool(answer.collaboration and in_rounds(answer.collaboration)) for answer in self.answers) / len(
            self.answers
        )

    def costs(self, round_trip: float, step: float) -> Costs:
        """`round_trip`: seconds; `step`: seconds of a plain step."""
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
    by_cell = defaultdict(list)
    for one in done:
        by_cell[one.what.cell].append(one)
    rows, worth = [], []
    for cell in plan.cells:
        if by_cell[cell]:
            measured = measured_ways(by_cell[cell])
            rows += [row(cell, name, measured, token_ends) for name in plan.ways]
            worth += worths(cell, measured)
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
    )


def measured_ways(done: Iterable[PassResult]) -> dict[str, Measured]:
    """What each way gave in one cell."""
    blocks, base = defaultdict(list), []
    for one in done:
        for block in one.blocks:
            blocks[block.way].append(block)
            if block.way == CLOUD_ONLY.name:
                base += block.answers
    return {name: Measured(WAYS[name], found, base) for name, found in blocks.items()}


def row(cell: NetworkCell, name: str, measured: dict[str, Measured], token_ends: TokenEnds) -> ModeRow:
    found = measured[name]
    answers, tokens, counts = found.answers, found.tokens, found.counts
    drafted, accepted, drawn = found.total("drafted"), found.total("accepted"), found.total("edge_drawn")
    gaps = [gap for answer in answers for gap in token_gaps(answer.arrivals, token_ends(answer.text))]
    return ModeRow(
        cell=cell,
        way=name,
        lossless=found.way.lossless,
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
    """Whether the cloud was asked round by round; its own stream is told as one round of another way."""
    return told.rounds > 0 and told.way != VerificationMode.CONTINUOUS


def same(one: TimedAnswer, other: TimedAnswer) -> bool:
    return (one.text, one.finish_reason, one.tokens) == (other.text, other.finish_reason, other.tokens)


def pairs(answers: Sequence[TimedAnswer], base: Sequence[TimedAnswer]) -> list[Pair]:
    return [Pair(a.tokens, a.seconds, b.tokens, b.seconds) for a, b in zip(answers, base, strict=True)]


def worths(cell: NetworkCell, measured: dict[str, Measured]) -> list[Worth]:
    found = []
    for part, candidates in WORTH.items():
        for have, lack in candidates:
            if have in measured and lack in measured:
                found.append(Worth(cell, part, speed_ratio(pairs(measured[have].answers, measured[lack].answers))))
    return found


def allowed(cell: NetworkCell, name: str, measured: dict[str, Measured]) -> float | None:
    """The ratio of speeds over cloud only that the costs measured in this cell allow this way at best."""
    plain = measured[CLOUD_ONLY.name].counts
    if not plain.decode_steps:
        return None
    found, step = measured[name], plain.decode_seconds / plain.decode_steps
    costs = found.costs(cell.round_trip / 1000, step)
    match found.way.form:
        case BoundFormula.ALONE:
            return None
        case BoundFormula.PLAIN:
            return 1.0
        case BoundFormula.CONTINUOUS:
            return bounds.plain_seconds(costs) / bounds.continuous_seconds(costs)
        case BoundFormula.ROUNDS | BoundFormula.ROUNDS_AHEAD as form:
            return bounds.plain_seconds(costs) / bounds.rounds_seconds(costs, ahead=form == BoundFormula.ROUNDS_AHEAD)
    best = [allowed(cell, other, measured) or 0.0 for other in ("rounds", "continuous") if other in measured]
    if found.in_rounds == 1:
        best.append(bounds.plain_seconds(costs) / bounds.rounds_seconds(costs, ahead=True))
    return max([1.0, *best])


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
