"""Calibrates the exits of a split model on a user's questions: a threshold for each exit.

    edgecloud calibrate --mode split --max-risk 0.05 --data questions.jsonl

All have one level: the probability that a token which is just taken is the whole model's. One part of the questions
shows each exit's threshold for a level and which level meets the target (a risk is tested on others than those that
showed the thresholds), the other part measures both. The model's first layers run in this process, as at the edge; a
cloud that has the others must run.
"""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from rich.console import Console

from calibration import data
from calibration.calibrate import CalibrationRequest, for_each, questions_of
from calibration.data import CalibrationQuestion
from calibration.simulation import Answers
from calibration.split import levels, report
from calibration.split.levels import LEVELS
from calibration.split.report import ThresholdFit
from calibration.split.simulation import ExitTrace, simulate
from calibration.target import HELD_OUT, CalibrationTarget
from common.config_schema import Config
from common.decoding.request import DecodingRequest
from common.errors import EndpointError
from common.types import GREEDY, Provenance
from edge.split.engine import EdgeInferenceEngine
from edge.split.segments import ExitPrediction, SegmentSequence
from edge.text.detokenizer import TextStream

SEED = 0
LEARNING = 5
"""One in so many answers shows the thresholds where the others prove a risk."""


class TracedExits(NamedTuple):
    """The whole model's answer as text, and what the exits predict along it."""

    text: str
    trace: ExitTrace


async def calibrate_split(config: Config, request: CalibrationRequest, console: Console) -> None:
    """The whole run: prints a table, writes a report and the config."""
    questions = questions_of(request, request.target.questions_needed)
    request.output.check()
    fitting, held_out = data.split(len(questions), HELD_OUT, SEED)
    async with EdgeInferenceEngine(config) as engine:

        async def trace(question: CalibrationQuestion) -> TracedExits:
            return await walk(engine, question, request.max_tokens)

        traced = await for_each(questions, trace, "the whole model's answers, and the exits along them", console)
        layers, first = engine.manifest.layers, engine.manifest.tail.first
        share = (layers - first) / layers
        learning, choosing = parts_for([traced[at].trace for at in fitting], request.target)
        exits = levels.fit(learning)
        candidates = [levels.thresholds(exits, level) for level in LEVELS]
        tried = await asyncio.to_thread(simulate, choosing, candidates, share)
        chosen = request.target.choose(tried, order=range(len(LEVELS)))

        async def measure(pair: tuple[CalibrationQuestion, TracedExits]) -> tuple[float, ...]:
            return await _measure(engine, *pair, candidates[chosen], request.max_tokens)

        pairs = [(questions[at], traced[at]) for at in held_out]
        rows = await for_each(pairs, measure, "held-out questions with these thresholds", console)
    fitted = ThresholdFit(
        thresholds=candidates,
        chosen=chosen,
        tried=tried,
        expected=simulate([traced[at].trace for at in held_out], candidates, share),
        measured=Answers(*np.array(rows, np.float64).T),
    )
    report.show(fitted, request.target, console)
    report.write(fitted, request, console)


def parts_for(traces: list[ExitTrace], target: CalibrationTarget) -> tuple[list[ExitTrace], list[ExitTrace]]:
    """Those that show each exit's threshold for a level, and those that choose the level.

    Only the proof of a risk needs others. A regression of two numbers needs few answers, a proof many.
    """
    if not target.proves_risk:
        return traces, traces
    return traces[::LEARNING], [trace for at, trace in enumerate(traces) if at % LEARNING]


async def walk(engine: EdgeInferenceEngine, question: CalibrationQuestion, max_tokens: int) -> TracedExits:
    """Gets the whole model's greedy answer token by token from the cloud, and computes every exit for each.

    Raises EndpointError if no cloud gives a token, RequestError for a prompt that does not fit.
    """
    ids = await engine.prompt_ids(question.prompt)
    text, parts = TextStream(engine.segments.piece), list[str]()
    seen, tokens = list[list[ExitPrediction]](), list[int]()
    lease = engine.segments.sequence(len(ids))
    async with lease as sequence, engine.tail(ids, sequence, reuse=False) as tail:
        while len(tokens) < min(max_tokens, engine.segments.context_length - len(ids)):
            seen.append(await _every_exit(sequence, tokens[-1:] or ids))
            tokens.append((await tail.token(sequence.states, GREEDY)).token_id)
            if tokens[-1] in sequence.end_tokens:
                break
            parts.append(text.push(tokens[-1:]))
    answer = "".join([*parts, text.flush()])
    confidence = np.array([[each.confidence for each in row] for row in seen]).T
    agrees = np.array([[each.token_id == right for each in row] for row, right in zip(seen, tokens, strict=True)]).T
    return TracedExits(answer, ExitTrace(len(ids), question.worth(answer, answer), confidence, agrees))


async def _every_exit(sequence: SegmentSequence, new: list[int]) -> list[ExitPrediction]:
    """What all exits predict after the tokens `new`; none is taken."""
    found = []
    async with aclosing(sequence.draw(new, 1, _refuse)) as parts:
        async for part in parts:
            found += part
    return found + [await sequence.catch_up(at, _refuse) for at in range(1, len(sequence.exits))]


def _refuse(confidence: float) -> bool:
    return False


async def _measure(
    engine: EdgeInferenceEngine,
    question: CalibrationQuestion,
    whole: TracedExits,
    thresholds: tuple[float, ...],
    max_tokens: int,
) -> tuple[float, ...]:
    """One answer with these thresholds, as the fields of `Answers`; raises EndpointError if the cloud is lost."""
    ids = await engine.prompt_ids(question.prompt)
    text, parts = TextStream(engine.segments.piece), list[str]()
    limit = min(max_tokens, engine.segments.context_length - len(ids))
    asked = DecodingRequest(ids, limit, GREEDY, replace(engine.plan(), exits=thresholds))
    async with engine.answer(asked) as split, aclosing(split.run()) as chunks:
        async for chunk in chunks:
            parts.append(text.push(chunk.token_ids))
    answer, found = "".join([*parts, text.flush()]), split.answer.report
    if found.degraded:
        raise EndpointError(f"the cloud was lost during an answer, so it cannot be counted: {found.degraded}")
    manifest, cloud = engine.manifest, found.tokens[Provenance.CLOUD]
    return (
        sum(found.tokens.values()),
        cloud,
        found.cloud_positions * (manifest.layers - manifest.tail.first) / manifest.layers,
        cloud,
        question.worth(answer, whole.text),
        question.worth(whole.text, whole.text),
        whole.trace.positions,
    )
