"""The continuous form on the demo model: drafts change how fast tokens come, never which ones."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio

from cloud.continuous import ContinuousAnswer
from cloud.draft_channel import DraftChannel
from cloud.engine import CloudEngine
from cloud.rounds import Round
from common.frames import EndFrame, TokensFrame
from common.types import GREEDY, Sampling

pytestmark = pytest.mark.asyncio(loop_scope="session")

QUESTIONS = ("What is AI?", "Explain quantum computing", "Explain deep learning", "What is machine learning?")
ANSWER = 60

Drafting = Callable[[ContinuousAnswer, list[int]], Awaitable[None]]


@pytest_asyncio.fixture(loop_scope="session")
async def channel() -> AsyncIterator[DraftChannel]:
    async with DraftChannel() as made:
        yield made


async def answer(
    engine: CloudEngine,
    channel: DraftChannel,
    prompt: list[int],
    drafting: Drafting | None = None,
    sampling: Sampling = GREEDY,
    max_tokens: int = ANSWER,
    stop: tuple[str, ...] = (),
    **other: Any,
) -> tuple[list[TokensFrame], EndFrame]:
    """One answer; `drafting` is called at its start and after every frame with all tokens so far."""
    frames: list[TokensFrame] = []
    with channel.sender() as sender:
        running = ContinuousAnswer(engine, Round(prompt, [], sampling, max_tokens, **other), sender, stop)
        known = list(prompt)
        async with aclosing(running.frames()) as coming:
            if drafting:
                await drafting(running, known)
            async for frame in coming:
                if isinstance(frame, EndFrame):
                    return frames, frame
                assert frame.position == len(known)
                frames.append(frame)
                known += frame.token_ids
                if drafting:
                    await drafting(running, known)
    raise AssertionError("an answer has an end")


def ids(frames: list[TokensFrame]) -> list[int]:
    return [token for frame in frames for token in frame.token_ids]


def prompts(engine: CloudEngine) -> list[list[int]]:
    return [list(engine.tokenizer.encode(question)) for question in QUESTIONS]


def oracle(right: list[int], length: int, error: float, seed: int = 0, shift: int = 0, times: int = 1) -> Drafting:
    """Drafts what follows (`shift` tokens later or earlier than it should), wrong with probability `error`."""
    rng = random.Random(seed)

    async def draft(running: ContinuousAnswer, known: list[int]) -> None:
        position = len(known) + shift
        drafted = [token if rng.random() >= error else rng.randrange(5, 100) for token in right[position:][:length]]
        for _ in range(times):
            if drafted:
                running.draft(position, drafted)

    return draft


async def test_smoke(cloud_engine: CloudEngine, channel: DraftChannel) -> None:
    prompt = prompts(cloud_engine)[1]
    frames, end = await answer(cloud_engine, channel, prompt)
    print(ids(frames), end)
    right = prompt + ids(frames)
    for e in (0, 0.25, 1):
        f, end = await answer(cloud_engine, channel, prompt, oracle(right, 8, e))
        assert ids(f) == ids(frames)
        print(e, end, sum(x.accepted for x in f))
    print(channel.counters)
    await asyncio.sleep(1)
    await answer(cloud_engine, channel, prompt)
    await asyncio.sleep(0.1)
    print(channel.counters)
