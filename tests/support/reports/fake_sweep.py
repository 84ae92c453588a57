"""Builds the passes of a network sweep, and its report, from invented answers."""

from msgspec.structs import replace

from common.types import Collaboration
from experiments.counters.cloud import CloudCounts
from experiments.harness.load import TimedAnswer
from experiments.network.passes import Block, NetworkCell, Pass, PassResult, SweepPlan, passes
from experiments.network.report import report
from experiments.network.schema import NetworkReport

PLAN = SweepPlan(
    round_trips=[0, 50], uplinks=[10], clients=[1, 4], ways=["cloud", "rounds", "rounds-not-ahead", "auto", "edge"],
    prompts=6, repeats=2, max_tokens=9, seed=0,
)  # fmt: skip


def answer(question: int, seconds: float, text: str = "a b c", **told: int) -> TimedAnswer:
    return TimedAnswer(
        question=question,
        seconds=seconds,
        tokens=3,
        text=text,
        finish_reason="stop",
        arrivals=[(seconds / 2, 1), (seconds, len(text) - 1)],
        collaboration=Collaboration(**told),  # type: ignore[arg-type]
    )


def block(way: str, one: Pass, seconds: float, **told: int) -> Block:
    answers = [answer(n, seconds, **told) for n in range(one.last - one.first)]
    counts = CloudCounts(steps=6, computed=30, decode_seconds=0.6, decode_steps=6, verify_seconds=1, verifies=10)
    return Block(way=way, seconds=2 * seconds, answers=answers, counts=counts, bytes_up=600, bytes_down=60)


def pass_result(one: Pass) -> PassResult:
    rounds = {"rounds": 2, "drafted": 8, "accepted": 6, "edge_latency_ms": 20, "edge_drawn": 10, "edge_wasted": 4}
    return PassResult(
        one,
        [
            block("cloud", one, 1.0),
            block("rounds", one, 0.5, **rounds),
            block("rounds-not-ahead", one, 0.8, **rounds),
            block("auto", one, 0.4, **rounds),
            block("edge", one, 0.1),
        ],
    )


def peer_report(seconds: dict[NetworkCell, float]) -> NetworkReport:
    """A sweep of the cloud (1 s an answer), an edge drafter (0.4 s) and n-grams, which take so long in each cell."""
    plan = replace(PLAN, ways=["cloud", "auto", "ngram"])
    made = [PassResult(one, [
        block("cloud", one, 1.0), block("auto", one, 0.4), block("ngram", one, seconds[one.cell]),
    ]) for one in passes(plan)]  # fmt: skip
    return report(plan, made, len(made), token_ends=lambda text: [1, 3, 5])


def sweep_report(entries: list[PassResult]) -> NetworkReport:
    return report(PLAN, entries, len(list(passes(PLAN))), token_ends=lambda text: [1, 3, 5])
