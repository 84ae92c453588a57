"""The report of a network sweep: the schema of its report.json."""

import msgspec

from experiments.harness.statistics import SpeedUp
from experiments.network.passes import NetworkCell, SweepPlan
from experiments.report.schema import Environment


class ModeRow(msgspec.Struct, kw_only=True):
    """One answer mode (`way`) in one cell. A value that a mode does not have is null.

    `speed`: tokens per second of one client (all tokens over all seconds from question to end); `throughput`: tokens
    per second of all clients together. `first_token_ms`: median time to the first token; `gap_p50_ms`, `gap_p95_ms`,
    `longest_gap_ms`: time between two tokens, 0 for tokens that arrived together. Bytes are per answer: on the network,
    and the message bodies among them as the edge counts them. `steps_per_token`: engine steps of the cloud over tokens
    of the answers; `computed_per_token`: tokens that the cloud computed (prompts and rejected drafts included) over the
    same. `acceptance_length`: tokens per round, or per step of the cloud in continuous mode. `thrown_away`: the share
    of verified draft tokens that were rejected; `edge_thrown_away`: the share of all tokens drafted by the edge, ahead
    too, that are not in the answer. `in_rounds`: the share of answers made in rounds. `differences`: how many of the
    `answers` differ from cloud only's answer to the same question; must be 0 if `lossless`. `degraded`: answers that
    went on without the cloud. `over_cloud_only`: ratio of speeds; `typical_over_cloud_only`: the median over questions
    of their own ratios, which a stall in one of them does not move; `allowed`: the highest ratio that the measured
    costs allow (experiments/network/bounds.py).
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
    """The worth of a part in a cell: the speed with it over the speed without it."""

    cell: NetworkCell
    part: str
    ratio: SpeedUp


class NetworkReport(msgspec.Struct, kw_only=True):
    """The plan, where it ran, and the results. `instead`: the speed of lossless collaboration over that of each mode
    that might be picked in its place, which `part` names.
    """

    plan: SweepPlan
    environment: Environment
    passes_done: int
    passes_planned: int
    different_questions: int
    lossless_answers: int
    """Answers in a lossless mode other than cloud only."""
    lossless_differences: int
    """How many of them differ from cloud only's answer to the same question."""
    rows: list[ModeRow]
    worth: list[Worth]
    instead: list[Worth] = []

    @property
    def cells(self) -> list[NetworkCell]:
        """The cells that have results."""
        return list(dict.fromkeys(row.cell for row in self.rows))
