"""Fits the gate to people's own questions and measures it on others: data → traces → thresholds → real answers.

    python main.py --mode calibrate --target-quality 0.98 --data questions.jsonl

Asks running servers over HTTP. Knows neither how a gate is chosen (calibration/fit.py) nor how it is shown.
"""

import argparse
import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from msgspec import Struct
from rich.console import Console
from rich.progress import Progress

from calibration import fit as calibration, data as calibration_data, report as calibration_report, risk
from common.protocol.openai import ChatRequest, Message
from common.protocol.openai_options import StreamOptions
from calibration.fit import Isotonic
from calibration.data import CalibrationQuestion
from calibration.report import Fitted
from common.config_schema import ConfidenceConfig, Config
from common.errors import ConfigError, EndpointError, FrameworkError, RequestError
from common.http_client import EdgeCloudHTTPClient
from common.decoding.policy import Plan, default_plan
from calibration.simulation import Answers, Trace, answers, replay
from calibration.trace import TracedAnswer, walk
from common.types import Collaboration, Mode, Provenance

T = TypeVar("T")
R = TypeVar("R")

HELD_OUT = 0.5
"""The share of the questions that thresholds are measured on, and not fitted to."""
SEED = 0
FEWEST = 30
"""Questions in either part, whatever the objective."""
CONCURRENCY = 8
"""Questions that are asked at once."""


@dataclass(frozen=True)
class CalibrationTarget:
    """What the gate is to reach, and in `flag` how it was asked for; `confidence` matters to `--max-risk` alone."""

    flag: str
    target: float
    confidence: float

    @classmethod
    def of(cls, args: argparse.Namespace) -> "CalibrationTarget":
        """Raises ConfigError unless exactly one objective is given, within its range."""
        flags = {
            "--target-quality": args.target_quality,
            "--target-cloud-rate": args.target_cloud_rate,
            "--max-risk": args.max_risk,
        }
        given = [(flag, value) for flag, value in flags.items() if value is not None]
        if len(given) != 1:
            raise ConfigError(f"--mode calibrate needs one of {', '.join(flags)}")
        flag, target = given[0]
        for name, value in ((flag, target), ("--confidence", args.confidence)):
            if not 0 < value < 1:
                raise ConfigError(f"{name} must be above 0 and below 1, not {value:g}")
        return cls(flag, target, args.confidence)

    @property
    def rows_needed(self) -> int:
        """How many questions can show it at all, those to measure on included.

        A quality: as many as would show a failure at that rate with 95 % (the rule of three). A risk: as many as can
        pass the test when none fails, and again as many to put the gates in order.
        """
        fit = FEWEST
        if self.flag == "--target-quality":
            fit = max(fit, math.ceil(round(3 / (1 - self.target), 6)))
        elif self.flag == "--max-risk":
            fit = max(fit, 2 * risk.trials_needed(self.target, self.confidence))
        return math.ceil(max(fit / (1 - HELD_OUT), FEWEST / HELD_OUT))

    def choose(self, found: Answers) -> int:
        """Which row of `found`, one for each plan, to take."""
        if self.flag == "--target-quality":
            return calibration.for_quality(found, self.target)
        if self.flag == "--target-cloud-rate":
            return calibration.for_cloud_rate(found, self.target)
        prompts = np.arange(found.worth.shape[-1])
        ordering, testing = found.of(prompts[::2]), found.of(prompts[1::2])
        return calibration.for_risk(ordering, testing, self.target, self.confidence)


class EdgeStats(Struct):
    """What the edge's /stats says that thresholds depend on."""

    confidence: ConfidenceConfig


@dataclass(frozen=True)
class Sources:
    """What a run reads, and where it writes: `base` is the config file that `output` is made from."""

    data: Path
    output: Path
    base: str | None


async def calibrate(
    client: EdgeCloudHTTPClient,
    config: Config,
    objective: CalibrationTarget,
    sources: Sources,
    max_tokens: int,
    console: Console,
) -> None:
    """The whole run; raises a FrameworkError in one line, and then has written nothing."""
    questions = enough(calibration_data.read(sources.data), sources.data, objective)
    calibration_report.check_output(sources.output, sources.base)
    confidence = (await client.edge.get("/stats", EdgeStats)).confidence
    fit, held_out = calibration_data.split(len(questions), HELD_OUT, SEED)

    async def walked(question: CalibrationQuestion) -> TracedAnswer:
        return await walk(client, question.prompt, max_tokens)

    walks = await each(questions, walked, "the cloud's answers, and the edge along them", console)
    pairs = list(zip(questions, walks, strict=True))
    traces = [Trace(w.confidences, w.agrees, q.worth(w.answer, w.answer), max_tokens) for q, w in pairs]
    base = replace(default_plan(config), mode=Mode.COLLABORATIVE, use_confidence_check=True, use_draft_verify=True)
    fitted = await asyncio.to_thread(fit_gate, [traces[i] for i in fit], base, objective, console)
    held_traces = [traces[i] for i in held_out]

    async def gated(pair: tuple[CalibrationQuestion, TracedAnswer]) -> tuple[float, ...]:
        return await answered(client, *pair, fitted.plan, max_tokens)

    rows = await each([pairs[i] for i in held_out], gated, "held-out questions through the gate", console)
    measured = Answers(*np.array(rows, np.float64).T)
    curves = calibration_report.curves(fitted, lambda plans: sweep(held_traces, plans))
    outcome = calibration_report.CalibrationResult(
        fitted, measured, sweep(held_traces, [fitted.plan])[0], curves, calibration.agreement(held_traces)
    )
    asked = (objective.flag, objective.target, objective.confidence)
    calibration_report.show(outcome, asked, console)
    calibration_report.write(outcome, asked, confidence, sources.output, sources.base, console)


def enough(questions: list[CalibrationQuestion], path: Path, objective: CalibrationTarget) -> list[CalibrationQuestion]:
    if len(questions) < objective.rows_needed:
        wanted = f"{objective.flag} {objective.target:g} needs at least {objective.rows_needed}"
        raise ConfigError(f"{path}: {len(questions)} questions are too few; {wanted}")
    return questions


def fit_gate(traces: list[Trace], base: Plan, objective: CalibrationTarget, console: Console) -> Fitted:
    """Tries every plan on the traces and takes the one that the objective wants."""
    mapping = Isotonic.fit(*calibration.agreement(traces))
    tried = calibration.plans(base, calibration.token_thresholds(calibration.agreement(traces)[0], mapping))
    found = sweep(traces, tried, console)
    return Fitted(tried, found, objective.choose(found), mapping)


def sweep(traces: list[Trace], plans: Sequence[Plan], console: Console | None = None) -> Answers:
    """The simulated answers of all these prompts, one row for each plan."""
    with Progress(console=console, disable=console is None, transient=True) as progress:
        rows = progress.track(plans, description="thresholds, tried on the first part")
        return answers(traces, [[replay(trace, plan) for trace in traces] for plan in rows])


async def answered(
    client: EdgeCloudHTTPClient, question: CalibrationQuestion, alone: TracedAnswer, plan: Plan, max_tokens: int
) -> tuple[float, ...]:
    """One gated answer by the edge server, as the fields of `Answers`; raises EndpointError if the cloud is lost."""
    request = ChatRequest(
        messages=[Message(role="user", content=question.prompt)],
        max_tokens=max_tokens,
        temperature=0.0,
        stream_options=StreamOptions(include_usage=True),
        use_confidence_check=True,
        use_draft_verify=True,
        confidence_threshold=plan.gate.threshold,
        product_threshold=plan.gate.product_threshold,
        max_draft_tokens=plan.max_draft_tokens,
    )
    text = ""
    report: Collaboration | None = None
    async for chunk in client.stream(request):
        text += "".join(choice.delta.content for choice in chunk.choices)
        report = chunk.collaboration or report
    if report is None or report.degraded:
        raise EndpointError(f"the cloud was lost on the way: {report.degraded if report else 'no report'}")
    tokens = sum(report.tokens.values())
    drawn = sum(report.tokens[p] for p in (Provenance.RECOVERED, Provenance.BONUS, Provenance.CLOUD))
    return (
        tokens,
        tokens - report.tokens[Provenance.EDGE],
        report.drafted + drawn,
        report.rounds,
        question.worth(text, alone.answer),
        question.worth(alone.answer, alone.answer),
        len(alone.agrees),
    )


async def each(items: Sequence[T], work: Callable[[T], Awaitable[R]], label: str, console: Console) -> list[R]:
    """`work` on every item, a few at a time, behind a progress bar; the first error ends it all, with its number."""
    room = asyncio.Semaphore(CONCURRENCY)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(label, total=len(items))

        async def one(number: int, item: T) -> R:
            async with room:
                try:
                    return await work(item)
                except RequestError as error:
                    raise RequestError(f"question {number}: {error.message}") from error
                finally:
                    progress.advance(bar)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(number, item)) for number, item in enumerate(items, 1)]
        except* FrameworkError as errors:
            raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
