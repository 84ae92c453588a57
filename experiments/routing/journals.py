"""Reads the answers that another run has recorded, of HumanEval for example: from its report, or from its journal."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from common.errors import ConfigError
from common.files import jsonl
from experiments.harness import results
from experiments.harness.environment import environment
from experiments.harness.results import RunDescription
from experiments.harness.trials import ExperimentPlan, TrialResult
from experiments.pass_rate import pass_measures
from experiments.questions.workload import Question
from experiments.report import schema
from experiments.report.schema import ExperimentReport


class RecordedRun(msgspec.Struct, frozen=True):
    """A report of what has been answered so far, and what tells which questions these were."""

    report: ExperimentReport
    prompts_sha256: str
    questions: int
    max_tokens: int
    raw: bool
    """Whether the models continued the prompts as they are."""

    def check(self, given: Sequence[Question]) -> None:
        """Raises ConfigError unless these are the questions that were asked, in their order."""
        prompts = msgspec.json.encode([question.prompt for question in given])
        if sha256(prompts).hexdigest() != self.prompts_sha256:
            raise ConfigError("other questions were asked than these: give --data, --tasks and --seed as that run had")


def read(path: Path, title: str) -> RecordedRun:
    """Raises ConfigError for a file that is neither a report nor a journal."""
    if path.name.endswith(".unfinished.jsonl"):
        return _of_journal(path, title)
    report = schema.read(path)
    return RecordedRun(
        report=msgspec.structs.replace(report, title=title, sweep=None, tables=[], charts=[], findings=[]),
        prompts_sha256=report.workload.prompts_sha256,
        questions=report.workload.questions,
        max_tokens=int(report.options.get("max_tokens", 0)),
        raw=report.options.get("form") == "completion",
    )


def _of_journal(path: Path, title: str) -> RecordedRun:
    try:
        first, *lines = jsonl.contents(path).rpartition(b"\n")[0].split(b"\n")
        plan = msgspec.json.decode(first, type=ExperimentPlan)
        entries = [msgspec.json.decode(line, type=TrialResult) for line in lines]
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is not the journal of an experiment: {error}") from error
    options: dict[str, Any] = {"max_tokens": plan.max_tokens, "seed": plan.seed, "data": plan.data}
    about = RunDescription(title, environment(), "", options)
    report = results.report(plan, entries, about, pass_measures.definitions(plan.max_tokens))
    return RecordedRun(report, plan.prompts_sha256, plan.questions, plan.max_tokens, plan.raw)
