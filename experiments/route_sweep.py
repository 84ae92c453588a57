"""Compares requests routed as wholes with the token gate, with both, and with chance: quality over the cloud's tokens.

    python -m experiments.route_sweep [--gates 0.5 0.8,0,4 ...] [--looks 0,4,8] [--questions N] [--minutes M] [--resume]
    python -m experiments.route_sweep --recorded logs/humaneval/humaneval_report.json --data humaneval:FILE

Each question is answered by the edge alone, by the cloud alone, and by a gate at each threshold. A routed answer is one
of the first two, so routers need no answers of their own: they are trained and judged on these (experiments/routing/).
`--recorded` takes the answers from another run, which had these ways: its report, or its journal.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace
from rich.console import Console

from cli import terminal
from cli.args import count, positive, run_program
from common.errors import ConfigError
from common.routing.router import MOST_TOKENS
from experiments.harness import experiment
from experiments.harness.experiment import ExperimentKind
from experiments.harness.measures import MEASURES, MeasureDefinition
from experiments.harness.options import numbers
from experiments.harness.trials import ExperimentPlan, TrialResult
from experiments.humaneval import tasks
from experiments.pass_rate import pass_measures, ways
from experiments.questions import datasets
from experiments.questions.datasets import Dataset
from experiments.questions.workload import Question
from experiments.report.document import ReportFiles
from experiments.report.schema import ExperimentReport
from experiments.routing import journals
from experiments.routing.document import add_curves
from experiments.routing.recorded import recorded
from experiments.setup.ablations import CLOUD_ONLY

QUESTIONS = 200
GATES = "0.1 0.3 0.5 0.7 0.8 0.9 0.95 0.99"
LOOKS = "0,4,8"
NAME = "routing_report"
TITLE = "Requests routed as wholes, beside the token gate"
WAYS = "edge_only,cloud_only"


def parser() -> argparse.ArgumentParser:
    options = experiment.parser("Compare a router with the token gate, with both and with chance.", QUESTIONS, 1)
    options.set_defaults(turns=0)
    options.add_argument(
        "--ways", default=WAYS, metavar="NAMES", help="what answers beside gates (default %(default)s)"
    )
    options.add_argument(
        "--gates",
        nargs="+",
        default=GATES.split(),
        metavar="C[,P[,N]]",
        help=f"gates: thresholds of confidence and product, and the draft length (default {GATES})",
    )
    options.add_argument(
        "--looks",
        default=LOOKS,
        metavar="N",
        help="the edge's first tokens that a router looks at, a router for each; the last is the one that goes with "
        "the gate (default %(default)s)",
    )
    options.add_argument("--clients", type=count, default=1, help="concurrent clients (default %(default)s)")
    options.add_argument("--minutes", type=positive, help="begin no question after this time (default: no limit)")
    options.add_argument("--recorded", metavar="FILE", help="answers of another run: its report, or its journal")
    options.add_argument("--tasks", metavar="NUMBERS", help="with --recorded, of HumanEval: as that run had it")
    return options


def looks(text: str) -> list[int]:
    """Numbers of tokens, each once. Raises ConfigError."""
    found = [int(number) for number in numbers(text, "--looks")]
    if max(found) > MOST_TOKENS:
        raise ConfigError(f"--looks takes numbers up to {MOST_TOKENS}, not {max(found)}")
    return list(dict.fromkeys(found))


async def main() -> None:
    await measure(parser().parse_args(), terminal.console())


async def measure(args: argparse.Namespace, console: Console) -> ExperimentReport:
    """Raises as experiment.run does, and ConfigError for invalid options."""
    tokens = looks(args.looks)
    if args.recorded:
        return from_recorded(args, tokens, console)
    base = experiment.base_config(args)
    if base.inference.online.enabled:
        raise ConfigError("inference.online: the online gate moves its thresholds; switch it off for this experiment")
    gates = [gate if "," in gate else f"{gate},0" for gate in args.gates]
    chosen = ways.chosen(args.ways, gates, None, clients=args.clients)
    dataset = datasets.load(datasets.spec_for(args.data, base), args.questions, args.seed)

    def finish(report: ExperimentReport, plan: ExperimentPlan, entries: Sequence[TrialResult]) -> None:
        add(report, dataset.questions, plan.max_tokens, tokens)

    kind = ExperimentKind(
        title=TITLE,
        name=NAME,
        program="-m experiments.route_sweep",
        measures=measures_of(dataset, args.max_tokens),
        plan_fields={"block": args.clients, "baseline": CLOUD_ONLY.name, "warm": False},
        settle_first=False,
        minutes=math.inf if args.minutes is None else args.minutes,
        finish=finish,
    )
    return await experiment.run(args, chosen, base, console, kind, dataset)


def measures_of(dataset: Dataset, max_tokens: int) -> dict[str, MeasureDefinition]:
    """Those of all experiments, and what the cloud computed; of programs those of HumanEval."""
    passing = pass_measures.definitions(max_tokens)
    return passing if _has_tasks(dataset) else MEASURES | {"cloud_computed": passing["cloud_computed"]}


def from_recorded(args: argparse.Namespace, tokens: Sequence[int], console: Console) -> ExperimentReport:
    """The report of a run that has recorded its answers. Raises ConfigError where they do not fit the options."""
    run = journals.read(Path(args.recorded), TITLE)
    if not args.data:
        raise ConfigError("--data is missing: the questions that were asked, as that run had them")
    everything = datasets.load(args.data, sys.maxsize, run.report.seed)
    questions = tasks(everything, args.tasks, run.questions, run.raw).questions if _has_tasks(everything) else []
    questions = questions or everything.questions[: run.questions]
    run.check(questions)
    report = replace(run.report, options=run.report.options | {"program": "-m experiments.route_sweep"})
    add(report, questions, run.max_tokens, tokens)
    experiment.write(report, ReportFiles.at(args.output, NAME), console)
    return report


def _has_tasks(dataset: Dataset) -> bool:
    return all(question.task for question in dataset.questions)


def add(report: ExperimentReport, questions: Sequence[Question], max_tokens: int, tokens: Sequence[int]) -> None:
    """The curves of both sides alone and of all gates: what is lossless or routed has the answer of a side again."""
    wanted = [name for name in report.rows if name not in (ways.LOSSLESS, ways.ROUTE)]
    answers = recorded(report.rows, questions, max_tokens, wanted)
    if answers.distance <= 0:
        report.warnings.append("edge only is as good as cloud only: there is nothing that a policy could recover")
        return
    seen = [each for each in tokens if each <= answers.tokens_seen]
    if unseen := sorted(set(tokens) - set(seen)):
        report.warnings.append(
            f"no router looks at {', '.join(map(str, unseen))} tokens: the run kept no confidences of the edge's tokens"
        )
    add_curves(report, answers, seen or [0])


if __name__ == "__main__":
    sys.exit(run_program(main()))
