"""Whole answers of a split model on real segments, with a fake cloud."""

import dataclasses
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np

from common import config
from common.decoding.answer import Chunk
from common.decoding.request import DecodingRequest
from common.types import GREEDY, Provenance, Sampling
from edge.split.answer import SplitAnswer
from edge.split.engine import EdgeInferenceEngine
from tests.support.split.fake_split_cloud import FakeSplitCloud

QUESTIONS = "What is AI?", "Sort 31, 7, 64.", "What is 12 + 30?", "Reverse: cloud edge model layer"
SOME, NEVER = 0.9, 2.0
"""Thresholds: confident of some tokens; of none."""
LENGTH = 24
BABBLE = Sampling(temperature=5.0, seed=4)
"""Draws nearly anything, so that answers do not end early."""


def engine_of(folder: Path, cloud: FakeSplitCloud, *settings: str) -> EdgeInferenceEngine:
    flags = [
        *(f"edge.split.manifest={folder}", "edge.model.kv_type=f32", "edge.model.threads=1", "edge.model.sequences=8"),
        *("edge.split.deadline_ms=300", "edge.split.transfer=fp32", *settings),
    ]
    return EdgeInferenceEngine(config.load(flags=flags, environment={}), split_clouds=cloud.clouds())


async def run(
    engine: EdgeInferenceEngine,
    question: str,
    thresholds: float | Sequence[float] = SOME,
    sampling: Sampling = GREEDY,
    **plan: Any,
) -> tuple[SplitAnswer, list[Chunk]]:
    """The whole answer, whose chunks are all of it."""
    segments = engine.segments
    ids = segments.tokenize(f"<|user|>{question}<|assistant|>", parse_special=True)
    exits = (thresholds,) * 2 if isinstance(thresholds, float) else tuple(thresholds)
    request = DecodingRequest(ids, LENGTH, sampling, dataclasses.replace(engine.plan(), exits=exits, **plan))
    async with engine.answer(request) as split, aclosing(split.run()) as running:
        chunks = [chunk async for chunk in running]
    answer, report = split.answer, split.answer.report
    assert answer.committed == ids + [token for chunk in chunks for token in chunk.token_ids]
    assert len(answer.committed) - len(ids) <= LENGTH
    assert (answer.ended == "stop") == (answer.committed[-1] in segments.end_tokens)
    assert answer.ended or len(answer.committed) == len(ids) + LENGTH
    assert not any(token in segments.end_tokens for token in answer.committed[len(ids) : -1])
    assert report.tokens[Provenance.EDGE] == sum(report.exits.values())
    assert report.tokens[Provenance.EDGE] + report.tokens[Provenance.CLOUD] == len(answer.committed) - len(ids)
    return split, chunks


def tokens(split: SplitAnswer) -> list[int]:
    return split.answer.committed[split._prompt_tokens :]


async def states_of(engine: EdgeInferenceEngine, committed: Sequence[int]) -> np.ndarray[Any, Any]:
    """After the first segment, all at once."""
    async with engine.segments.sequence(len(committed)) as sequence:
        async with aclosing(sequence.draw(list(committed), 0, lambda _: False)) as parts:
            assert [part async for part in parts] == []
        return sequence.states.copy()
