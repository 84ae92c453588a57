"""Measures pass@1 on HumanEval, and what it costs the cloud: edge only, cloud only, lossless, and gates.

    python -m experiments.humaneval --data HumanEval.jsonl.gz [--ways NAMES] [--thresholds 0.5,0.1 0.8,0.3 ...]
        [--calibrated FILE] [--form chat|completion] [--tasks 0-81,100] [--questions 164] [--max-tokens 512]
        [--clients 1] [--minutes M] [--resume] [--output DIR]

Each task is a chat that asks for the whole function in one code block; or, with `--form completion`, the models
continue the task's text as it is. Greedy, one answer for each task and way; it passes if the task's tests run to their
end (experiments/programs/sandbox.py). All ways answer a task in turn, in a new order for each task, on one pair of
servers. `--thresholds` adds a gate for each pair of thresholds (confidence, product), `--calibrated` the gate of a
config file that `main.py --mode calibrate` wrote.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import msgspec
from rich.console import Console

from calibration.risk import wilson
from cli import terminal
from cli.args import count, run_program
from common.errors import ConfigError
from common.types import Provenance
from experiments.harness import comparison, experiment, measures
from experiments.harness.areas import areas
from experiments.harness.experiment import ExperimentKind
from experiments.harness.measures import MEASURES, MeasureDefinition, Sample
from experiments.harness.trials import ExperimentPlan, TrialResult
from experiments.questions import datasets
from experiments.questions.datasets import Dataset
from experiments.report.schema import (
    AnswerRow,
    ConfigurationReport,
    Curves,
    ExperimentReport,
    Measure,
    Series,
    SweepDescription,
)
from experiments.setup import gate_points
from experiments.setup.ablations import CLOUD_ONLY, Ablation

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
PLOTS = (
    Curves(x="cloud_rate", y="quality"),
    Curves(x="cloud_computed", y="quality"),
    Curves(x="latency_mean_ms", y="quality"),
    Curves(x="cloud_rate", y="latency_mean_ms"),
)


def cloud_computed(row: AnswerRow) -> float:
    """Draft tokens that the cloud verified, and tokens that it generated."""
    drawn = (Provenance.RECOVERED, Provenance.BONUS, Provenance.CLOUD)
    return row.drafted + sum(row.provenance.get(source, 0) for source in drawn)


def measures_of(max_tokens: int) -> dict[str, MeasureDefinition]:
    """Those of all experiments, and what the cloud computed."""
    found = dict(MEASURES)
    rate = found.pop("quality")
    return {
        "quality": replace(rate, info=measures.count("pass@1", "", "higher", rate.how).info),  # type: ignore[arg-type]
        "cloud_rate": found.pop("cloud_rate"),
        "cloud_computed": measures.count(
            "Cloud-computed tokens", "per answer", "lower", measures.mean(cloud_computed), exact=False
        ),
        **found,
        "engine_tokens": measures.count(
            "Tokens of the cloud's engine, prompts included", "per answer", "lower",
            measures.counted(lambda each: each.cloud.computed + each.cloud.drafted - each.cloud.accepted), exact=False,
        ),
        "engine_steps": measures.count(
            "Steps of the cloud's engine", "per answer", "lower", measures.counted(lambda each: each.cloud.steps),
            exact=False,
        ),
        "cut_off": measures.count(
            f"Cut off at {max_tokens} tokens", "", "lower", measures.mean(lambda row: float(row.tokens >= max_tokens))
        ),
    }  # fmt: skip


def tasks(dataset: Dataset, numbers: str | None, most: int, raw: bool) -> Dataset:
    """The first `most` of the tasks with the numbers of a list such as 0-81,100 (None: all). Raises ConfigError.

    `raw`: with the tasks' own text as prompts, not the wording for a chat.
    """
    found = dataset.questions
    if numbers is not None:
        wanted = set[int]()
        try:
            for part in numbers.replace("HumanEval/", "").split(","):
                first, _, last = part.partition("-")
                wanted |= set(range(int(first), int(last or first) + 1))
        except ValueError as error:
            raise ConfigError(f"--tasks takes numbers and ranges, for example 0-81,100, not {numbers!r}") from error
        found = [one for one in found if int(one.kind.rpartition("/")[2]) in wanted]
    if not found:
        raise ConfigError(f"{dataset.name} has no task {numbers}")
    if raw:
        found = [msgspec.structs.replace(one, prompt=one.task.prompt) for one in found if one.task]
    return replace(dataset, questions=found[:most])


def finish(
    gates: Sequence[Ablation],
    definitions: dict[str, MeasureDefinition],
    report: ExperimentReport,
    plan: ExperimentPlan,
    entries: Sequence[TrialResult],
) -> None:
    """Wilson's intervals for pass@1, the curve through all gates, and each way beside cloud only in a sentence."""
    samples = {
        one.name: measures.sample(entry for entry in entries if entry.what.configuration == one.name)
        for one in plan.configurations
    }
    for one in report.configurations:
        if "quality" in one.measures:
            value = one.measures["quality"].value
            one.measures["quality"] = Measure(value, *wilson(round(value * one.answers), one.answers))
    report.findings += [
        beside_cloud(one, samples[one.name], samples[report.baseline], definitions)
        for one in report.configurations
        if one.name != report.baseline == CLOUD_ONLY.name and one.answers
    ]
    report.findings.append("intervals of pass@1 are Wilson's; all others, and those of differences, are bootstraps")
    ends = [name for name in (gate_points.EDGE_ONLY, CLOUD_ONLY.name) if name in samples]
    if gates:
        at = [plan_threshold(one, plan) for one in gates]
        series = [Series(name="gates", configurations=[one.name for one in gates], at=at)]
        both = len(ends) == 2
        area = (
            areas(series, ends, samples, definitions["cloud_rate"], definitions["quality"], "quality") if both else []
        )
        report.sweep = SweepDescription(parameter="Threshold", series=series, ends=ends, plots=list(PLOTS), areas=area)


def plan_threshold(gate: Ablation, plan: ExperimentPlan) -> float:
    """The confidence threshold of a gate."""
    own = gate.config_overrides.get("edge", {}).get("confidence", {})
    return float(own.get("threshold", plan.config["edge"]["confidence"]["threshold"]))


def beside_cloud(
    one: ConfigurationReport, sample: Sample, cloud: Sample, definitions: dict[str, MeasureDefinition]
) -> str:
    """What a way loses and saves, paired by task."""
    rate = one.measures.get("quality")
    text = (
        f"{one.name}: pass@1 {rate.value:.3f} ({round(rate.value * one.answers)} of {one.answers})"
        if rate
        else one.name
    )
    if change := one.differences.get("quality"):
        text += f", {100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}] points to cloud only"
    for name, words in (("cloud_computed", "cloud-computed tokens"), ("latency_mean_ms", "time")):
        if share := comparison.ratio(definitions[name], sample, cloud):
            text += f"; {words} {share.value:.2f} [{share.low:.2f}, {share.high:.2f}] times cloud only's"
    return text


def parser() -> argparse.ArgumentParser:
    options = experiment.parser("Measure pass@1 on HumanEval, and what it costs the cloud.", TASKS, 1)
    options.set_defaults(max_tokens=MAX_TOKENS, output="logs/humaneval")
    options.add_argument("--ways", default=DEFAULT_WAYS, metavar="NAMES", help="what to compare (default %(default)s)")
    options.add_argument(
        "--thresholds",
        nargs="+",
        action="extend",
        default=[],
        metavar="C,P",
        help="gates: thresholds of confidence and product",
    )
    options.add_argument("--calibrated", metavar="FILE", help="a config that --mode calibrate wrote: adds its gate")
    options.add_argument(
        "--form", choices=list(STOPS), default="chat", help="a question, or the text itself (default %(default)s)"
    )
    options.add_argument("--tasks", metavar="NUMBERS", help="only these, for example 0-81,100 (default: all)")
    options.add_argument("--clients", type=count, default=1, help="concurrent clients (default %(default)s)")
    options.add_argument("--minutes", type=float, help="begin no task after this time (default: no limit)")
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
    chosen = gate_points.chosen(
        args.ways, args.thresholds, args.calibrated, clients=args.clients, fields={"stop": STOPS[args.form]}
    )
    named = args.data.partition(":")[0] == "humaneval"
    everything = datasets.load(args.data if named else f"humaneval:{args.data}", sys.maxsize, args.seed)
    definitions, raw = measures_of(args.max_tokens), args.form == "completion"
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
        finish=partial(finish, [one for one in chosen if gate_points.is_gate(one)], definitions),
    )
    found = tasks(everything, args.tasks, args.questions, raw)
    return await experiment.run(args, chosen, base, console, kind, found)


if __name__ == "__main__":
    sys.exit(run_program(main()))
