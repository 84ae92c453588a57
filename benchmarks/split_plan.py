"""Predicts what every cut of the demo model costs, measures it, and compares their orders.

    python -m benchmarks.split_plan [--cuts 1,2,3,4,5,6,7] [--questions 16] [--rtt 14] [--uplink 20] [--exits-file FILE]

Edge and cloud have a core each where there are two, and a simulated network between them. The edge's speed is measured
on segments alone, the cloud's on the first and the last cut without exits; the rates of exits come from the exits file,
which is trained first if it does not exist. So what is checked is whether a few speeds give the order of all cuts.
"""

import os
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.table import Table

from benchmarks.measured_cut import (
    AnswerTimes,
    TimedStep,
    answer_all,
    fastest,
    fitted,
    served_tail,
    split_edge,
    time_segment,
)
from cli import terminal
from cli.args import amount, count, plain_parser, positive, run_program
from common.errors import ConfigError
from common.files.installation import logs
from common.protocol.split_manifest import read_manifest
from common.types import StateEncoding
from models import heldout
from models.demo import CLOUD
from models.exits import heads
from models.exits.training import ExitRecipe
from models.partition.checkpoint import Checkpoint
from models.partition.edge_memory import ExitForm
from models.partition.exit_tensors import confident_shares, layer_list
from models.partition.partition import partition
from models.partition.plan import planned_exit, whole_model
from models.partition.split_cost import EngineSpeed, NetworkSpeed, Surroundings, predict

WARM_UP = 2
"""Answers before the measured ones."""
REPEATS = 3
"""Of every answer, of which the fastest counts: others shared the cores with something."""


class MeasuredCut(msgspec.Struct):
    """One cut with or without its exit: the answers, and the milliseconds a token that were predicted and measured."""

    cut: int
    use_exits: bool
    answers: list[AnswerTimes]
    predicted_ms: float = 0.0
    predicted_bytes: float = 0.0

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    @property
    def measured_ms(self) -> float:
        return sum(answer.ms for answer in self.answers) / self.tokens

    @property
    def measured_bytes(self) -> float:
        return sum(answer.bytes_up for answer in self.answers) / self.tokens

    @property
    def asked(self) -> float:
        return sum(answer.cloud_tokens for answer in self.answers) / self.tokens


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: Pearson's correlation of ranks; equal values are ranked in their order."""
    orders = [sorted(range(len(of)), key=of.__getitem__) for of in (first, second)]
    return statistics.correlation(*([float(order.index(at)) for at in range(len(order))] for order in orders))


async def main() -> None:
    parser = plain_parser(__doc__.partition("\n")[0])
    parser.add_argument("--cuts", type=layer_list, default=list(range(1, 8)), help="layers at the edge (default: all)")
    parser.add_argument("--questions", type=count, default=16, help="answers at each cut (default: %(default)s)")
    parser.add_argument("--rtt", type=amount, default=14.0, help="round trip in ms (default: %(default)s)")
    parser.add_argument("--uplink", type=positive, default=20.0, help="Mbit/s (default: %(default)s)")
    parser.add_argument("--exits-file", type=Path, default=logs() / "split-plan-exits.safetensors", metavar="FILE")
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    args = parser.parse_args()
    console = terminal.console()
    if not args.exits_file.exists():
        heads.train(str(CLOUD), list(range(1, 8)), [], heads.TRANSLATOR, ExitRecipe(epochs=1), args.exits_file)
    if missing := [cut for cut in args.cuts if cut not in confident_shares(args.exits_file)]:
        raise ConfigError(f"{args.exits_file}: says not how often its exit after {missing[0]} layers is confident")
    network = NetworkSpeed(args.rtt, args.uplink)
    questions = [prompt for _, prompt, _ in heldout.pairs(per_kind=4)]
    random.Random(1).shuffle(questions)
    cores = sorted(os.sched_getaffinity(0))
    console.print(f"load before: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        pieces = {cut: Path(folder) / str(cut) for cut in args.cuts}
        for cut, path in pieces.items():
            partition(str(CLOUD), [cut], args.exits_file, "f32", path)
        head = whole_model(Checkpoint(CLOUD).config).head
        os.sched_setaffinity(0, cores[:1])
        edge = fitted([step for path in pieces.values() for step in time_segment(read_manifest(path), path, head)])
        os.sched_setaffinity(0, cores)
        measured, steps = [], list[TimedStep]()
        for cut, path in pieces.items():
            found, seen = await _measure(cut, path, questions[: args.questions + WARM_UP], network, cores)
            measured += found
            steps += seen if cut in (args.cuts[0], args.cuts[-1]) else []
            console.print(f"cut {cut}: " + ", ".join(f"{each.measured_ms:.1f} ms a token" for each in found))
    cloud = fitted([step._replace(once=head) for step in steps])
    console.print(f"load after: {os.getloadavg()[0]:.1f}; edge {edge}; cloud {cloud}")
    _predict(measured, edge, cloud, network, args.exits_file)
    console.print(as_table(measured))
    for name, chosen in (("without exits", [False]), ("with an exit at the cut", [True]), ("all", [False, True])):
        those = [each for each in measured if each.use_exits in chosen]
        correlation = rank_correlation([each.predicted_ms for each in those], [each.measured_ms for each in those])
        console.print(f"rank correlation of predicted and measured times, {name}: {correlation:.2f}")
    if args.json:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(measured)))


async def _measure(
    cut: int, path: Path, questions: list[str], network: NetworkSpeed, cores: list[int]
) -> tuple[list[MeasuredCut], list[TimedStep]]:
    """The cut with and without exits, and the cloud's steps in the answers without."""
    async with (
        served_tail(path, cores[-1] if len(cores) > 1 else None) as server,
        split_edge(path, server.port, network) as (engine, steps),
    ):
        await answer_all(engine, questions[:WARM_UP], 1, use_exits=False)
        steps.clear()
        without = await answer_all(engine, questions[WARM_UP:], REPEATS, use_exits=False)
        seen = fastest(steps, REPEATS)
        taking = await answer_all(engine, questions[WARM_UP:], REPEATS, use_exits=True)
    return [MeasuredCut(cut, False, without), MeasuredCut(cut, True, taking)], seen


def _predict(
    measured: list[MeasuredCut], edge: EngineSpeed, cloud: EngineSpeed, network: NetworkSpeed, exits_file: Path
) -> None:
    config, rates = Checkpoint(CLOUD).config, confident_shares(exits_file)
    whole = whole_model(config)
    for each in measured:
        exit = planned_exit(
            config, whole, each.cut, rates[each.cut] if each.use_exits else 0.0, ExitForm(translator=True)
        )
        for answer in each.answers:
            around = Surroundings(edge, cloud, network, StateEncoding.FP16, answer.prompt, answer.tokens)
            cost = predict(whole, [exit], around)
            each.predicted_ms += cost.total_ms * answer.tokens / each.tokens
            each.predicted_bytes += cost.bytes_up * answer.tokens / each.tokens


def as_table(measured: list[MeasuredCut]) -> Table:
    table = Table("cut", "exit", title="A token of an answer: predicted, and measured", title_justify="left")
    for name in ("predicted ms", "measured ms", "predicted bytes up", "measured bytes up", "asked the cloud"):
        table.add_column(name, justify="right")
    for each in measured:
        times = f"{each.predicted_ms:.1f}", f"{each.measured_ms:.1f}"
        sizes = f"{each.predicted_bytes:.0f}", f"{each.measured_bytes:.0f}"
        table.add_row(str(each.cut), "taken" if each.use_exits else "none", *times, *sizes, f"{each.asked:.1%}")
    return table


if __name__ == "__main__":
    sys.exit(run_program(main()))
