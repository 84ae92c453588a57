"""Calibrates the gate on a user's questions: traces them, fits thresholds to one part, measures the gate on the other.

    python main.py --mode calibrate --target-quality 0.98 --data questions.jsonl

The servers run already; everything is asked over HTTP.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from msgspec import Struct
from rich.console import Console
from rich.progress import Progress

from calibration import data, fit, report
from calibration.data import CalibrationQuestion
from calibration.fit import Isotonic
from calibration.report import CalibratedConfig
from calibration.result import CalibrationResult, Fitted, curves
from calibration.simulation import Answers, Trace, answers, replay
from calibration.target import HELD_OUT, CalibrationTarget
from calibration.trace import TracedAnswer, walk
from common.config_edge import ConfidenceConfig
from common.config_schema import Config
from common.decoding.policy import Plan, default_plan
from common.errors import ConfigError, EndpointError, FrameworkError, RequestError
from common.http_client import EdgeCloudHTTPClient
from common.protocol.content.openai_options import StreamOptions
from common.protocol.openai import ChatRequest, Message
from common.types import Collaboration, Mode, Provenance

T = TypeVar("T")
R = TypeVar("R")

SEED = 0
"""Of the split into two parts."""
CONCURRENCY = 8
"""Questions that are asked at the same time."""


class EdgeStats(Struct):
    """The part of the edge's /stats that thresholds depend on."""

    confidence: ConfidenceConfig


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate for, the questions' JSONL file, the config file to write, and the longest answer in tokens."""

    target: CalibrationTarget
    data: Path
    output: CalibratedConfig
    max_tokens: int


async def calibrate(client: EdgeCloudHTTPClient, config: Config, request: CalibrationRequest, console: Console) -> None:
    """The whole run: prints a table, writes the files. If it raises a FrameworkError, nothing has been written."""
    target, max_tokens = request.target, request.max_tokens
    questions = questions_of(request, request.target.questions_needed)
    request.output.check()
    confidence = (await client.edge.get("/stats", EdgeStats)).confidence
    fitting, held_out = data.split(len(questions), HELD_OUT, SEED)

    async def trace(question: CalibrationQuestion) -> TracedAnswer:
        return await walk(client, question.prompt, max_tokens)

    traced = await for_each(questions, trace, "the cloud's answers, and the edge along them", console)
    pairs = list(zip(questions, traced, strict=True))
    traces = [Trace(t.confidences, t.agrees, q.worth(t.answer, t.answer), max_tokens) for q, t in pairs]
    base = replace(default_plan(config), mode=Mode.COLLABORATIVE, use_confidence_check=True, use_draft_verify=True)
    fitted = await asyncio.to_thread(fit_gate, [traces[i] for i in fitting], base, target, console)
    held_traces = [traces[i] for i in held_out]

    async def measure(pair: tuple[CalibrationQuestion, TracedAnswer]) -> tuple[float, ...]:
        return await _measure(client, *pair, fitted.plan, max_tokens)

    rows = await for_each([pairs[i] for i in held_out], measure, "held-out questions through the gate", console)
    result = CalibrationResult(
        fitted=fitted,
        measured=Answers(*np.array(rows, np.float64).T),
        expected=simulate(held_traces, [fitted.plan])[0],
        curves=curves(fitted, lambda plans: simulate(held_traces, plans)),
        agreement=fit.agreement(held_traces),
    )
    report.show(result, target, console)
    report.write(result, target, confidence, request.output, console)


def questions_of(request: CalibrationRequest, needed: int) -> list[CalibrationQuestion]:
    """Raises ConfigError if there are fewer than `needed`, or the answers' limit is below 1 token."""
    if request.max_tokens < 1:
        raise ConfigError(f"--max-tokens must be 1 or more, not {request.max_tokens}")
    questions = data.read(request.data)
    if len(questions) < needed:
        wanted = f"{request.target.flag} {request.target.target:g} needs at least {needed}"
        raise ConfigError(f"{request.data}: {len(questions)} questions are too few; {wanted}")
    return questions


def fit_gate(traces: list[Trace], base: Plan, target: CalibrationTarget, console: Console) -> Fitted:
    """Simulates every candidate plan on the traces and chooses the one that meets the target best."""
    confidences, agrees = fit.agreement(traces)
    mapping = Isotonic.fit(confidences, agrees)
    plans = fit.plans(base, fit.token_thresholds(confidences, mapping))
    simulated = simulate(traces, plans, console)
    return Fitted(plans, simulated, target.choose(simulated), mapping)


def simulate(traces: list[Trace], plans: Sequence[Plan], console: Console | None = None) -> Answers:
    """The simulated answers to all these prompts, one row per plan; with a console, behind a progress bar."""
    with Progress(console=console, disable=console is None, transient=True) as progress:
        rows = progress.track(plans, description="thresholds, tried on the first part")
        return answers(traces, [[replay(trace, plan) for trace in traces] for plan in rows])


async def _measure(
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
    collaboration: Collaboration | None = None
    async for chunk in client.stream(request):
        text += "".join(choice.delta.content for choice in chunk.choices)
        collaboration = chunk.collaboration or collaboration
    if collaboration is None or collaboration.degraded:
        reason = collaboration.degraded if collaboration else "the answer has no report"
        raise EndpointError(f"the cloud was lost during an answer, so it cannot be counted: {reason}")
    by = collaboration.tokens
    tokens = sum(by.values())
    drawn = by[Provenance.RECOVERED] + by[Provenance.BONUS] + by[Provenance.CLOUD]
    return (
        tokens,
        tokens - by[Provenance.EDGE],
        collaboration.drafted + drawn,
        collaboration.rounds,
        question.worth(text, alone.answer),
        question.worth(alone.answer, alone.answer),
        len(alone.agrees),
    )


async def for_each(items: Sequence[T], work: Callable[[T], Awaitable[R]], label: str, console: Console) -> list[R]:
    """`work` on every item, CONCURRENCY at a time, behind a progress bar; the first error ends it all.

    A RequestError gets the number of its question, counted from 1.
    """
    room = asyncio.Semaphore(CONCURRENCY)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(label, total=len(items))

        async def limited(number: int, item: T) -> R:
            async with room:
                try:
                    return await work(item)
                except RequestError as error:
                    raise RequestError(f"question {number}: {error.message}") from error
                finally:
                    progress.advance(bar)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(limited(number, item)) for number, item in enumerate(items, 1)]
        except* FrameworkError as errors:
            raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
