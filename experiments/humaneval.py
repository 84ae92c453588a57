"""Measures pass@1 on HumanEval, and what it costs the cloud: edge only, cloud only, lossless, and gates.

    python -m experiments.humaneval --data HumanEval.jsonl.gz [--ways NAMES] [--thresholds 0.5,0.1 0.8,0.3 ...]
        [--calibrated FILE] [--form chat|completion] [--tasks 0-81,100] [--questions 164] [--max-tokens 512]
        [--clients 1] [--minutes M] [--resume] [--output DIR]

Each task is a chat that asks for the whole function in one code block; or, with `--form completion`, the models
continue the task's text as it is. Greedy, one answer for each task and way; it passes if the task's tests run to their
end (experiments/questions/sandbox.py). All ways answer a task in turn, in a new order for each task, on one pair of
servers. `--thresholds` adds a gate for each pair of thresholds (confidence, product), or three numbers with a draft
length; `--calibrated` the gate of a config file that `main.py --mode calibrate` wrote.
"""

import argparse
import math
import sys
from dataclasses import replace

import msgspec
from rich.console import Console

from cli import terminal
from cli.args import count, positive, run_program
from common.errors import ConfigError
from experiments.harness import experiment
from experiments.harness.experiment import ExperimentKind
from experiments.pass_rate import pass_measures, ways
from experiments.pass_rate.beside_cloud import PassRateFinish
from experiments.questions import datasets
from experiments.questions.datasets import Dataset
from experiments.report.schema import ExperimentReport
from experiments.setup.ablations import CLOUD_ONLY

TASKS, MAX_TOKENS = 164, 512
NAME = "humaneval_report"
SETTINGS = (
    "inference.fallback=false",
    "communication.http_client.timeout=600",
    "communication.http_client.first_byte_timeout=120",
    "communication.http_client.idle_timeout=120",
)
"""A lost cloud is an error, not an answer of the edge; a slow one is waited for. All else is as the config says."""
STOPS = {
    "chat": ["\n```\n\n"],
    "completion": ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```"],
}
"""Where an answer has its function: behind a code block, where prose begins; or where the next top-level code begins,
by the words of Chen et al. 2021. What follows would take time and change no result."""
DEFAULT_WAYS = "edge_only,cloud_only,lossless,gated"


def tasks(dataset: Dataset, numbers: str | None, most: int, raw: bool) -> Dataset:
    """The first `most` of the tasks with the numbers of a list such as 0-81,100 (None: all). Raises ConfigError.

    `raw`: with the tasks' own text as prompts, not the wording for a chat.
    """
    found = dataset.questions
    if numbers is not None:
        ranges = _ranges(numbers)
        known = {int(one.kind.rpartition("/")[2]): one for one in found}
        if missing := [part for part, wanted in ranges.items() if not any(number in wanted for number in known)]:
            raise ConfigError(f"{dataset.name} has no task {missing[0]}")
        found = [one for number, one in known.items() if any(number in wanted for wanted in ranges.values())]
    if raw:
        found = [msgspec.structs.replace(one, prompt=one.task.prompt) for one in found if one.task]
    return replace(dataset, questions=found[:most])


def _ranges(numbers: str) -> dict[str, range]:
    """The parts of a list such as 0-81,100. Raises ConfigError."""
    ranges = {}
    try:
        for part in numbers.replace("HumanEval/", "").split(","):
            first, _, last = part.partition("-")
            ranges[part] = range(int(first), int(last or first) + 1)
    except ValueError as error:
        raise ConfigError(f"--tasks takes numbers and ranges, for example 0-81,100, not {numbers!r}") from error
    return ranges


def parser() -> argparse.ArgumentParser:
    options = experiment.parser("Measure pass@1 on HumanEval, and what it costs the cloud.", TASKS, 1)
    options.set_defaults(max_tokens=MAX_TOKENS, output="logs/humaneval")
    options.add_argument("--ways", default=DEFAULT_WAYS, metavar="NAMES", help="what to compare (default %(default)s)")
    options.add_argument(
        "--thresholds",
        nargs="+",
        action="extend",
        default=[],
        metavar="C,P[,N]",
        help="gates: thresholds of confidence and product, and the draft length if it is not the config's",
    )
    options.add_argument("--calibrated", metavar="FILE", help="a config that --mode calibrate wrote: adds its gate")
    options.add_argument(
        "--form", choices=list(STOPS), default="chat", help="a question, or the text itself (default %(default)s)"
    )
    options.add_argument("--tasks", metavar="NUMBERS", help="only these, for example 0-81,100 (default: all)")
    options.add_argument("--clients", type=count, default=1, help="concurrent clients (default %(default)s)")
    options.add_argument("--minutes", type=positive, help="begin no task after this time (default: no limit)")
    return options


async def main() -> None:
    await measure(parser().parse_args(), terminal.console())


async def measure(args: argparse.Namespace, console: Console) -> ExperimentReport:
    """Raises as experiment.run does, and ConfigError for invalid options."""
    if not args.data:
        raise ConfigError("--data is missing: HumanEval.jsonl.gz as it is published")
    if args.questions < 1:
        raise ConfigError(f"--questions must be at least 1, not {args.questions}")
    base = experiment.base_config(args, SETTINGS)
    if base.inference.online.enabled:
        raise ConfigError("inference.online: the online gate moves its thresholds; switch it off for this experiment")
    chosen = ways.chosen(
        args.ways, args.thresholds, args.calibrated, clients=args.clients, fields={"stop": STOPS[args.form]}
    )
    named = args.data.partition(":")[0] == "humaneval"
    everything = datasets.load(args.data if named else f"humaneval:{args.data}", sys.maxsize, args.seed)
    definitions, raw = pass_measures.definitions(args.max_tokens), args.form == "completion"
    cloud = [one.name for one in chosen if one.name == CLOUD_ONLY.name]
    kind = ExperimentKind(
        title="HumanEval",
        name=NAME,
        program="-m experiments.humaneval",
        settings=SETTINGS,
        measures=definitions,
        plan_fields={"block": args.clients, "baseline": cloud[0] if cloud else "", "raw": raw},
        settle_first=False,
        minutes=math.inf if args.minutes is None else args.minutes,
        finish=PassRateFinish([one for one in chosen if ways.is_gate(one)], definitions),
    )
    found = tasks(everything, args.tasks, args.questions, raw)
    return await experiment.run(args, chosen, base, console, kind, found)


if __name__ == "__main__":
    sys.exit(run_program(main()))
