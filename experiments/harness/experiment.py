"""What all experiments over configurations share: options, servers, order, progress, journal, report.

Knows no single experiment: one is a list of ablations, whose configurations answer the same questions.
"""

import argparse
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from cli.args import config_parser
from common import config as configs
from common.config_schema import Config
from common.errors import ConfigError, EndpointError, StartError
from experiments.harness import results
from experiments.harness.environment import environment
from experiments.harness.journal import Journal
from experiments.harness.measures import MEASURES, Definition
from experiments.harness.progress import progress
from experiments.harness.runner import Runner
from experiments.harness.servers import fleet
from experiments.harness.trials import ExperimentPlan, Network, Trial, TrialResult, trials
from experiments.questions import datasets
from experiments.report import html, markdown, schema, sweep_words
from experiments.report.schema import ExperimentReport
from experiments.setup.ablations import Ablation
from experiments.setup.configurations import configuration

SETTINGS = (
    "cloud.model.dtype=float32",
    "inference.way=rounds",
    "inference.objective=cost",
    "inference.draft_ahead=false",
    "inference.fallback=false",
    "cloud.draft_verifier.resident_sessions=32",
    "cloud.draft_verifier.batch.max_batch_size=64",
)
"""What all configurations of an experiment have, unless the command line sets it otherwise.

Nothing that is counted depends on how long something takes: lossless answers come in rounds, drafts have the length
that the gate gives them, and none is begun before it is known to be wanted. A lost cloud is an error, not an answer of
the edge. Sessions keep their places in the cloud although they follow each other faster than people ask.
"""
DEMO_TURNS = 2
"""Earlier turns before each question of the demo corpus, whose prompts are too short to be worth keeping by themselves;
the demo models, trained on single turns, bear so many."""


Finish = Callable[[ExperimentReport, ExperimentPlan, Sequence[TrialResult]], None]


@dataclass(frozen=True)
class ExperimentKind:
    """What one experiment does its own way.

    `program`: how it is started. `settings`: what all its configurations have, as SETTINGS. `measures`: what is
    measured. `asked`: how its plan differs (fields of Plan). `settled`: whether every configuration answers every
    question once before anything is counted, so that caches have no part in what is counted. `finish` adds to the
    report what this experiment alone finds.
    """

    program: str = "ablation_experiments.py"
    settings: Sequence[str] = SETTINGS
    measures: Mapping[str, Definition] = field(default_factory=lambda: MEASURES)
    asked: Mapping[str, Any] = field(default_factory=dict)
    settled: bool = True
    finish: Finish = lambda report, plan, entries: None


def parser(description: str, questions: int, repeats: int) -> argparse.ArgumentParser:
    made = config_parser(description)
    made.add_argument(
        "--data", metavar="FILE|NAME", help="questions (experiments/questions/datasets.py; default: held-out ones)"
    )
    made.add_argument("--questions", type=int, default=questions, help="how many at most (default %(default)s)")
    made.add_argument("--turns", type=int, help=f"earlier turns before each (default: {DEMO_TURNS}, with --data 0)")
    made.add_argument("--max-tokens", type=int, default=96, help="longest answer (default %(default)s)")
    made.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default %(default)s)")
    made.add_argument("--repeats", type=int, default=repeats, help="answers to each question (default %(default)s)")
    made.add_argument("--seed", type=int, default=0, help="chooses questions, orders, draws (default %(default)s)")
    made.add_argument("--network", metavar="MS,MBIT", help="round trip and bandwidth between edge and cloud")
    made.add_argument("--output", default=".", metavar="DIR", help="folder of the report (default: this one)")
    made.add_argument("--resume", action="store_true", help="go on with a run that was broken off")
    return made


def base_config(args: argparse.Namespace, settings: Sequence[str] = SETTINGS) -> Config:
    """The config of the command line, over the settings."""
    return configs.load(args.config, [*settings, *args.set])


def plan_of(
    args: argparse.Namespace,
    base: Config,
    ablations: Sequence[Ablation],
    asked: datasets.Dataset,
    kind: ExperimentKind = ExperimentKind(),
) -> ExperimentPlan:
    """Raises ConfigError for what makes no sense, before anything is started."""
    turns = (0 if args.data else DEMO_TURNS) if args.turns is None else args.turns
    for option, value, least in (("repeats", args.repeats, 1), ("max-tokens", args.max_tokens, 1), ("turns", turns, 0)):
        if value < least:
            raise ConfigError(f"--{option} must be {least} at least, not {value}")
    if not 0 <= args.temperature <= 2:
        raise ConfigError(f"--temperature must be from 0 to 2, not {args.temperature:g}")
    prompts = msgspec.json.encode([question.prompt for question in asked.questions])
    return ExperimentPlan(
        configurations=[configuration(ablation, base) for ablation in ablations],
        data=asked.name,
        prompts_sha256=hashlib.sha256(prompts).hexdigest(),
        questions=len(asked.questions),
        repeats=args.repeats,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        seed=args.seed,
        network=None if args.network is None else network_of(args.network),
        config=msgspec.to_builtins(base, enc_hook=repr),
        turns=turns,
        **kind.asked,
    )


def network_of(text: str) -> Network:
    try:
        round_trip, mbit = map(float, text.split(","))
    except ValueError as error:
        raise ConfigError(f"--network takes milliseconds and Mbit/s, as in 20,50, not {text!r}") from error
    if not (0 <= round_trip < 1e5 and 0 < mbit < 1e6):
        raise ConfigError(f"--network takes a round trip of 0 ms at least and more than 0 Mbit/s, not {text!r}")
    return Network(round_trip, mbit)


async def run(
    args: argparse.Namespace,
    ablations: Sequence[Ablation],
    base: Config,
    title: str,
    name: str,
    console: Console,
    kind: ExperimentKind = ExperimentKind(),
) -> ExperimentReport:
    """Measures what is not measured yet, and writes the report NAME.json, .md and .html into the output folder.

    What was measured is kept beside it while the run is not complete, for --resume. Raises StartError when a server
    does not come up or is lost, and EndpointError when a configuration answered nothing; the report is there then.
    """
    asked = datasets.load(args.data, args.questions, args.seed)
    plan, folder = plan_of(args, base, ablations, asked, kind), Path(args.output)
    file = folder / f"{name}.unfinished.jsonl"
    journal = Journal(file, plan, TrialResult, args.resume)
    try:
        await _measure(args, plan, asked, base, journal, console, kind)
    except StartError as error:
        kept = f"; {len(journal.entries)} answers are kept, --resume goes on" if journal.entries else ""
        raise StartError(f"{error.message}{kept}") from error
    options = {"program": kind.program, **options_of(args)}
    found = results.report(title, plan, journal.entries, environment(), asked.metric, options, kind.measures)
    kind.finish(found, plan, journal.entries)
    write(found, folder, name, console)
    file.unlink()
    for one in found.configurations:
        if not one.answers:
            raise EndpointError(f"{one.name}: nothing was answered; {one.first_failure}")
    return found


async def _measure(
    args: argparse.Namespace,
    plan: ExperimentPlan,
    asked: datasets.Dataset,
    base: Config,
    journal: Journal[ExperimentPlan, TrialResult],
    console: Console,
    kind: ExperimentKind,
) -> None:
    done = {entry.what for entry in journal.entries}
    everything = list(trials(plan))
    left = [trial for trial in everything if trial not in done]
    if not left:
        return
    needed = {trial.configuration for trial in left}
    wanted = [one.needs for one in plan.configurations if one.name in needed]
    async with (
        fleet(args, kind.settings, wanted, console.print) as places,
        Runner(plan, asked.questions, places, base.communication) as runner,
    ):
        with progress(console) as bar:
            first = firsts(left, plan.warm) if kind.settled else []
            task = bar.add_task("", total=len(first) + len(left))
            for trial in first:
                bar.update(task, description=f"settling: {trial.configuration}")
                await runner.settle(trial)
                bar.advance(task)
            for trial in left:
                bar.update(task, description=f"repeat {trial.repeat + 1} of {plan.repeats}: {trial.configuration}")
                journal.add(await runner.make(trial))
                bar.advance(task)


def firsts(left: Sequence[Trial], each_question: bool = True) -> list[Trial]:
    """For each configuration, and each question of it if something is kept of that, one of the trials."""
    found: dict[tuple[str, tuple[int, ...]], Trial] = {}
    for trial in left:
        found.setdefault((trial.configuration, trial.questions if each_question else ()), trial)
    return list(found.values())


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """What of the command line decides what is measured; keys that are secret stay so."""
    shown = {name: value for name, value in vars(args).items() if name not in ("output", "resume", "compare")}
    return shown | {"set": [re.sub(r"(api_keys?)=.*", r"\1=***", setting) for setting in args.set]}


def write(found: ExperimentReport, folder: Path, name: str, console: Console) -> None:
    schema.write(found, folder / f"{name}.json")
    (folder / f"{name}.md").write_text(markdown.render(found))
    (folder / f"{name}.html").write_text(html.render(found))
    for sentence in sweep_words.summary(found):
        console.print(str(sentence))
    for kind in ("json", "md", "html"):
        console.print(f"written: {folder / name}.{kind}")
