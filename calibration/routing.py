"""Calibrates the router of mode route: asks edge and cloud each question, fits weights and a threshold, measures.

    edgecloud calibrate --router router.json --target-quality 0.98 --data questions.jsonl

A quarter of the questions gives the weights, a quarter the threshold, half the figures. A routed answer is the edge's
or the cloud's own, so both are asked once and every threshold is measured, not simulated.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from rich.console import Console

from calibration import data, logistic, route_report
from calibration.calibrate import CalibrationRequest, EdgeStats, for_each, questions_of
from calibration.data import CalibrationQuestion
from calibration.route_report import RouterFit
from calibration.simulation import Answers, Numbers
from calibration.target import HELD_OUT
from common.enums import ConfidenceStrategy
from common.errors import ConfigError, EndpointError
from common.http_client import EdgeCloudHTTPClient
from common.protocol.content.openai_options import CollaborationOptions, StreamOptions
from common.protocol.openai import ChatRequest, Message
from common.protocol.openai_replies import ModelList
from common.routing import features
from common.routing.features import Features
from common.routing.router import Router, Training
from common.types import Mode

SEED = 0
STEPS = 100
"""Thresholds to try, at quantiles of the scores, and those at which one side answers everything."""


@dataclass(frozen=True)
class SideAnswers:
    """One question as both sides answered it: what is known to route it, tokens of the answers, and their worth."""

    prompt: Features
    confidences: Sequence[float]
    finished: bool
    """Whether the edge's answer ended by itself, and not at the limit."""
    tokens: tuple[int, int]
    """The edge's, the cloud's."""
    worth: tuple[float, float]
    """As `tokens`, 0 to 1."""

    def features(self, tokens: int) -> Features:
        """After the edge's first `tokens` tokens."""
        drawn = self.confidences[:tokens]
        ended = self.finished and len(self.confidences) <= tokens
        return self.prompt | (features.of_draft(drawn, ended) if drawn else {})

    @property
    def worse(self) -> bool:
        return self.worth[0] < self.worth[1]


async def calibrate_router(
    client: EdgeCloudHTTPClient, request: CalibrationRequest, file: Path, tokens: int, console: Console
) -> None:
    """The whole run: prints a table, writes the router's `file`, a report and the config."""
    questions = questions_of(request, 2 * request.target.questions_needed)
    request.output.check()
    route_report.check(file)
    confidence = (await client.edge.get("/stats", EdgeStats)).confidence
    training = await _training(client, confidence.strategy)

    async def both(question: CalibrationQuestion) -> SideAnswers:
        return await ask_both(client, question, request.max_tokens)

    answered = await for_each(questions, both, "every question, to the edge and to the cloud", console)
    fitted = await asyncio.to_thread(fit_router, answered, tokens, request, training)
    route_report.show(fitted, request.target, console)
    route_report.write(fitted, request, confidence, file, console)


def fit_router(
    answered: Sequence[SideAnswers], tokens: int, request: CalibrationRequest, training: Training
) -> RouterFit:
    """Raises ConfigError where no threshold meets the target, or one side is never worse."""
    fitting, held_out = data.split(len(answered), HELD_OUT, SEED)
    first, second = ([answered[i] for i in part] for part in (fitting[::2], fitting[1::2]))
    measured = [answered[i] for i in held_out]
    router = train(first, tokens, training)
    thresholds = thresholds_for(scores_of(router, second))
    tried = routed(second, scores_of(router, second), thresholds)
    chosen = request.target.choose(tried, order=range(len(thresholds)))
    return RouterFit(
        router=replace(router, threshold=thresholds[chosen]),
        thresholds=thresholds,
        tried=tried,
        measured=routed(measured, scores_of(router, measured), thresholds),
    )


def train(answered: Sequence[SideAnswers], tokens: int, training: Training, threshold: float = 0.5) -> Router:
    """The router with the likeliest weights for which of these answers of the edge are worse than the cloud's."""
    rows = [each.features(tokens) for each in answered if each.confidences or not tokens]
    labels = [each.worse for each in answered if each.confidences or not tokens]
    if not rows:
        raise ConfigError("the edge has answered none of the questions: there is nothing to train a router on")
    names = list(rows[0])
    bias, weights = logistic.fit([[row[name] for name in names] for row in rows], labels)
    found = {name: float(weight) for name, weight in zip(names, weights, strict=True) if weight}
    return Router(
        tokens=tokens, threshold=threshold, bias=bias, weights=found, training=replace(training, questions=len(rows))
    )


def scores_of(router: Router, answered: Sequence[SideAnswers]) -> Numbers:
    """The score of each question, [N]; above 1 where the edge has drawn nothing, which the cloud answers."""
    seen = [(each.features(router.tokens), each.confidences or not router.tokens) for each in answered]
    return np.array([router.score(found) if drawn else 2.0 for found, drawn in seen])


def thresholds_for(scores: Numbers) -> list[float]:
    """Thresholds to try, from 0 (the cloud answers all) to 1, rounded to 4 digits: the safest first."""
    even = np.quantile(np.minimum(scores, 1.0), np.linspace(0, 1, STEPS + 1))
    return sorted({0.0, 1.0, *(round(float(each), 4) for each in even)})


def routed(answered: Sequence[SideAnswers], scores: Numbers, thresholds: Sequence[float]) -> Answers:
    """These questions' answers, one row for each threshold: nothing is simulated."""
    to_cloud: NDArray[np.bool_] = scores >= np.array(thresholds)[:, None]
    tokens, worth = (np.array([getattr(each, name) for each in answered]).T for name in ("tokens", "worth"))
    cloud = np.where(to_cloud, tokens[1], 0.0)
    alone, best = (np.broadcast_to(each[1], cloud.shape).astype(np.float64) for each in (tokens, worth))
    return Answers(
        tokens=np.where(to_cloud, tokens[1], tokens[0]).astype(np.float64),
        cloud_tokens=cloud,
        computed=cloud,
        calls=to_cloud.astype(np.float64),
        worth=np.where(to_cloud, worth[1], worth[0]).astype(np.float64),
        cloud_worth=best,
        alone=alone,
    )


async def ask_both(client: EdgeCloudHTTPClient, question: CalibrationQuestion, max_tokens: int) -> SideAnswers:
    """Raises EndpointError where a side cannot be used."""
    edge = await _ask(client, question, Mode.EDGE_ONLY, max_tokens)
    cloud = await _ask(client, question, Mode.CLOUD_ONLY, max_tokens)
    texts = edge.text, cloud.text
    return SideAnswers(
        prompt=features.of_prompt(question.prompt, edge.prompt_tokens),
        confidences=edge.confidences,
        finished=edge.finished,
        tokens=(edge.tokens, cloud.tokens),
        worth=(question.worth(texts[0], texts[1]), question.worth(texts[1], texts[1])),
    )


@dataclass
class _OneAnswer:
    text: str = ""
    confidences: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    finished: bool = False


async def _ask(client: EdgeCloudHTTPClient, question: CalibrationQuestion, mode: Mode, max_tokens: int) -> _OneAnswer:
    request = ChatRequest(
        messages=[Message(role="user", content=question.prompt)],
        max_tokens=max_tokens,
        temperature=0.0,
        mode=mode,
        stream_options=StreamOptions(include_usage=True),
        collaboration=CollaborationOptions(tokens=True),
    )
    answer, degraded = _OneAnswer(), None
    async for chunk in client.stream(request):
        for choice in chunk.choices:
            answer.text += choice.delta.content
            answer.confidences += choice.confidences
            answer.finished = choice.finish_reason == "stop" or answer.finished
        if chunk.usage:
            answer.tokens, answer.prompt_tokens = chunk.usage.completion_tokens, chunk.usage.prompt_tokens
        degraded = chunk.collaboration.degraded if chunk.collaboration else degraded
    if degraded:
        raise EndpointError(f"the cloud was lost during an answer, so it cannot be counted: {degraded}")
    return answer


async def _training(client: EdgeCloudHTTPClient, strategy: ConfidenceStrategy) -> Training:
    """The models that both servers list first."""
    edge, cloud = await client.edge.get("/v1/models", ModelList), await client.clouds.get("/v1/models", ModelList)
    return Training(edge_model=edge.data[0].id, cloud_model=cloud.data[0].id, strategy=strategy, questions=0)
