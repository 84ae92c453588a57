"""Runs an experiment: a list of ablations whose configurations all answer the same questions.

Here is what all experiments share: servers, order, progress, journal and report.
"""

import argparse
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from rich.console import Console

from common import config as configs
from common.config_schema import Config
from common.errors import ConfigError, EndpointError, StartError
from experiments.harness import results
from experiments.harness.environment import environment
from experiments.harness.journal import Journal
from experiments.harness.measures import MEASURES, MeasureDefinition
from experiments.harness.options import DEMO_TURNS, options_of
from experiments.harness.options import parser as parser
from experiments.harness.progress import progress
from experiments.harness.results import RunDescription
from experiments.harness.runner import Runner
from experiments.harness.servers import fleet
from experiments.harness.trials import ExperimentPlan, Network, Trial, TrialResult, trials
from experiments.questions import datasets
from experiments.report import html, markdown, sweep_words
from experiments.report.document import ReportFiles, write_files
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
"""Settings of all configurations of an experiment; the command line can override them.

No count depends on timing: lossless answers use verification rounds, the gate alone decides the length of a draft, and
none is drafted ahead. A lost cloud is an error, not an answer of the edge. The cloud has room for more resident
sessions than usual, as sessions follow each other faster here than in use.
"""

Finish = Callable[[ExperimentReport, ExperimentPlan, Sequence[TrialResult]], None]


@dataclass(frozen=True, kw_only=True)
class ExperimentKind:
    """What distinguishes one experiment from the others.

    `name`: of the report's files. `program`: what starts it, for the report. `settings`: of all its configurations.
    `plan_fields`: fields of ExperimentPlan that it sets. `settle_first`: whether every configuration answers every
    question once before anything is counted, so that caches are equally warm. `minutes`: after this time no question
    is begun; the report is about those before, and the journal stays for --resume. `finish` adds this experiment's own
    tables, curves and findings to the report.
    """

    title: str
    name: str
    program: str
    settings: Sequence[str] = SETTINGS
    measures: Mapping[str, MeasureDefinition] = field(default_factory=lambda: MEASURES)
    plan_fields: Mapping[str, Any] = field(default_factory=dict)
    settle_first: bool = True
    minutes: float = math.inf
    finish: Finish = lambda report, plan, entries: None


def base_config(args: argparse.Namespace, settings: Sequence[str] = SETTINGS) -> Config:
    """The config of the command line over `settings` (KEY=VALUE)."""
    return configs.load(args.config, [*settings, *args.set])


def plan_of(
    args: argparse.Namespace,
    base: Config,
    ablations: Sequence[Ablation],
    dataset: datasets.Dataset,
    kind: ExperimentKind,
) -> ExperimentPlan:
    """The plan of the command line. Raises ConfigError for invalid options."""
    turns = (0 if datasets.spec_for(args.data, base) else DEMO_TURNS) if args.turns is None else args.turns
    for option, value, minimum in (
        ("repeats", args.repeats, 1),
        ("max-tokens", args.max_tokens, 1),
        ("turns", turns, 0),
    ):
        if value < minimum:
            raise ConfigError(f"--{option} must be at least {minimum}, not {value}")
    if not 0 <= args.temperature <= 2:
        raise ConfigError(f"--temperature must be from 0 to 2, not {args.temperature:g}")
    prompts = msgspec.json.encode([question.prompt for question in dataset.questions])
    return ExperimentPlan(
        configurations=[configuration(ablation, base) for ablation in ablations],
        data=dataset.name,
        prompts_sha256=hashlib.sha256(prompts).hexdigest(),
        questions=len(dataset.questions),
        repeats=args.repeats,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        seed=args.seed,
        network=None if args.network is None else network_of(args.network),
        config=msgspec.to_builtins(base, enc_hook=repr),
        turns=turns,
        **kind.plan_fields,
    )


def network_of(text: str) -> Network:
    """Parses "MS,MBIT"; raises ConfigError."""
    try:
        round_trip, mbit = map(float, text.split(","))
    except ValueError as error:
        raise ConfigError(f"--network takes milliseconds and Mbit/s, for example 20,50, not {text!r}") from error
    if not (0 <= round_trip < 1e5 and 0 < mbit < 1e6):
        raise ConfigError(f"--network takes a round trip of at least 0 ms and more than 0 Mbit/s, not {text!r}")
    return Network(round_trip, mbit)


async def run(
    args: argparse.Namespace,
    ablations: Sequence[Ablation],
    base: Config,
    console: Console,
    kind: ExperimentKind,
    dataset: datasets.Dataset | None = None,
) -> ExperimentReport:
    """Measures what is not measured yet; writes the report as .json, .md and .html into the output folder.

    `dataset`: the questions; None: those of the command line. Until the run is complete, a journal beside the report
    keeps the results for --resume. Raises StartError when a
    server does not start or is lost, and EndpointError when a configuration answered nothing; the report exists then.
    """
    dataset = dataset or datasets.load(datasets.spec_for(args.data, base), args.questions, args.seed)
    plan, files = plan_of(args, base, ablations, dataset, kind), ReportFiles.at(args.output, kind.name)
    file = files.file("unfinished.jsonl")
    journal = Journal(file, plan, TrialResult, args.resume)
    finished = {entry.what for entry in journal.entries}
    remaining = [trial for trial in trials(plan) if trial not in finished]
    try:
        if remaining:
            names = {trial.configuration for trial in remaining}
            needs = [one.needs for one in plan.configurations if one.name in names]
            async with (
                fleet(args, kind.settings, needs, console.print) as sites,
                Runner(plan, dataset.questions, sites, base.communication) as runner,
            ):
                first = first_trials(remaining, plan.warm) if kind.settle_first else []
                await _measure(runner, plan, first, remaining, journal, console, kind.minutes)
    except StartError as error:
        kept = f"; {len(journal.entries)} answers are kept, --resume goes on" if journal.entries else ""
        raise StartError(f"{error.message}{kept}") from error
    about = RunDescription(
        kind.title, environment(), dataset.metric, options={"program": kind.program, **options_of(args)}
    )
    report = results.report(plan, journal.entries, about, kind.measures)
    kind.finish(report, plan, journal.entries)
    if missing := len(finished) + len(remaining) - len(journal.entries):
        report.warnings.append(f"{missing} of {len(finished) + len(remaining)} trials are not done yet")
        console.print("the time is over; --resume continues")
    write(report, files, console)
    if not missing:
        file.unlink()
    for one in report.configurations:
        if not one.answers:
            raise EndpointError(f"{one.name}: nothing was answered; {one.first_failure}")
    return report


async def _measure(
    runner: Runner,
    plan: ExperimentPlan,
    first: Sequence[Trial],
    remaining: Sequence[Trial],
    journal: Journal[ExperimentPlan, TrialResult],
    console: Console,
    minutes: float,
) -> None:
    """Runs the trials `first` without recording them, then the remaining ones into the journal.

    When the minutes are over it ends before the next question, so that all configurations have answered the same ones.
    """
    until, asked = time.monotonic() + 60 * minutes, None
    with progress(console) as bar:
        task = bar.add_task("", total=len(first) + len(remaining))
        for trial in first:
            bar.update(task, description=f"settling: {trial.configuration}")
            await runner.settle(trial)
            bar.advance(task)
        for trial in remaining:
            if time.monotonic() > until and trial.questions != asked:
                return
            asked = trial.questions
            bar.update(task, description=f"repeat {trial.repeat + 1} of {plan.repeats}: {trial.configuration}")
            journal.add(await runner.run(trial))
            bar.advance(task)


def first_trials(remaining: Sequence[Trial], each_question: bool) -> list[Trial]:
    """The first trial of each configuration or, with `each_question`, of each configuration and block of questions."""
    first: dict[tuple[str, tuple[int, ...]], Trial] = {}
    for trial in remaining:
        first.setdefault((trial.configuration, trial.questions if each_question else ()), trial)
    return list(first.values())


def write(report: ExperimentReport, files: ReportFiles, console: Console) -> None:
    """Writes the report's files; prints the summary."""
    written = write_files(files, report, markdown.render(report), html.render(report))
    for sentence in sweep_words.summary(report):
        console.print(str(sentence))
    for path in written:
        console.print(f"written: {path}")
