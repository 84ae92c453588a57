"""Answers of a split model that go on from earlier ones, and leave to later ones what they compute."""

from contextlib import aclosing
from dataclasses import replace

from common.decoding.request import DecodingRequest
from common.types import GREEDY, Sampling
from edge.split.answer import SplitAnswer
from edge.split.engine import EdgeInferenceEngine

LENGTH = 12
ALWAYS = 0.0


def prompt_of(engine: EdgeInferenceEngine, text: str) -> list[int]:
    return engine.segments.tokenize(f"<|user|>{text}<|assistant|>", parse_special=True)


async def answered(
    engine: EdgeInferenceEngine,
    prompt: list[int],
    thresholds: tuple[float, ...] = (0.9, 0.9),
    sampling: Sampling = GREEDY,
    reuse: bool = True,
    standalone: bool = False,
) -> SplitAnswer:
    plan = replace(engine.plan(standalone=standalone), exits=thresholds)
    request = DecodingRequest(prompt, LENGTH, sampling, plan)
    async with engine.answer(request, reuse) as split, aclosing(split.run()) as running:
        async for _ in running:
            pass
    return split
