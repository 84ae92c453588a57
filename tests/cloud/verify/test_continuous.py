"""Continuous mode on the demo model: drafts change the speed, never the tokens."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio

from cloud.engine.engine import CloudEngine
from cloud.verify.continuous import ContinuousAnswer
from cloud.verify.draft_channel import DraftChannel
from cloud.verify.round import VerifyRound
from cloud.verify.stateless import verify
from common.errors import ContextLengthError
from common.grammar.spec import GrammarKind, GrammarSpec
from common.protocol.stream_frames import EndFrame, TokensFrame
from common.types import GREEDY, Sampling
from tests.cloud.engine.test_engine import prompts
from tests.conftest import CLOUD_CONTEXT

pytestmark = pytest.mark.asyncio(loop_scope="session")

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
    stop: tuple[str, ...] = (),
    **options: Any,
) -> tuple[list[TokensFrame], EndFrame]:
    """One answer of a VerifyRound with `options`; `drafting` is called at its start and after every frame."""
    frames: list[TokensFrame] = []
    with channel.sender() as sender:
        asked = VerifyRound(prompt, [], **{"max_tokens": ANSWER, **options})
        running = ContinuousAnswer(engine, asked, sender, stop)
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


def oracle(
    right: list[int], length: int = 8, error: float = 0.0, shift: int = 0, times: int = 1, lag: int = 0
) -> Drafting:
    """Drafts the next `length` tokens, each one wrong with probability `error`, `times` times.

    The draft begins `shift` tokens after the answer's end, as it was `lag` frames ago.
    """
    rng = random.Random(f"{right}{length}{error}")
    seen: list[int] = []

    async def draft(running: ContinuousAnswer, known: list[int]) -> None:
        seen.append(len(known))
        position = seen[max(0, len(seen) - 1 - lag)] + shift
        drafted = [token if rng.random() >= error else rng.randrange(5, 100) for token in right[position:][:length]]
        for _ in range(times if drafted else 0):
            running.draft(position, drafted)

    return draft


def out_of_order(right: list[int]) -> Drafting:
    """Drafts that begin before and after the answer's end, in any order."""
    rng = random.Random(3)

    async def draft(running: ContinuousAnswer, known: list[int]) -> None:
        for _ in range(3):
            position = max(0, len(known) + rng.randrange(-12, 12))
            if drafted := right[position : position + 20]:
                running.draft(position, drafted)

    return draft


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def right(cloud_engine: CloudEngine) -> list[list[int]]:
    """Each prompt followed by the engine's answer without drafts."""
    asked = prompts(cloud_engine)
    plain = await asyncio.gather(*(verify(cloud_engine, VerifyRound(p, [], GREEDY, ANSWER)) for p in asked))
    return [prompt + verdict.token_ids for prompt, verdict in zip(asked, plain, strict=True)]


async def test_without_drafts_it_is_plain_streaming(
    cloud_engine: CloudEngine, channel: DraftChannel, right: list[list[int]]
) -> None:
    prompt = prompts(cloud_engine)[0]
    began = time.monotonic()
    frames, end = await answer(cloud_engine, channel, prompt)
    assert prompt + ids(frames) == right[0]
    assert 0 < end.cloud_ms < 1e3 * (time.monotonic() - began)
    assert (end.steps, end.drafted, end.accepted) == (len(ids(frames)), 0, 0)


DRAFTINGS: dict[str, Callable[[list[int]], Drafting]] = {
    "right": lambda right: oracle(right, 8),
    "long": lambda right: oracle(right, 40),
    "of one token": lambda right: oracle(right, 1),
    "sometimes wrong": lambda right: oracle(right, 16, error=0.25),
    "always wrong": lambda right: oracle(right, 16, error=1.0),
    "early": lambda right: oracle(right, 16, shift=3),
    "late": lambda right: oracle(right, 24, lag=4),
    "too late": lambda right: oracle(right, 3, lag=8),
    "twice": lambda right: oracle(right, 8, error=0.1, times=2),
    "out of order": out_of_order,
    "of the answer's beginning only": lambda right: oracle(right, 8, lag=1000),
}


@pytest.mark.parametrize("drafting", DRAFTINGS.values(), ids=DRAFTINGS.keys())
async def test_greedy_tokens_do_not_change_with_drafts_that_are(
    cloud_engine: CloudEngine,
    channel: DraftChannel,
    right: list[list[int]],
    drafting: Callable[[list[int]], Drafting],
) -> None:
    for prompt, whole in zip(prompts(cloud_engine), right, strict=True):
        frames, end = await answer(cloud_engine, channel, prompt, drafting(whole))
        assert prompt + ids(frames) == whole
        assert end.accepted == sum(frame.accepted for frame in frames)
        # Each step draws one token of its own, unless the draft predicted the answer's end.
        assert 0 <= end.accepted + end.steps - len(ids(frames)) <= 1


async def test_right_drafts_save_steps_and_wrong_ones_are_soon_no_longer_verified(
    cloud_engine: CloudEngine, channel: DraftChannel, right: list[list[int]]
) -> None:
    prompt = prompts(cloud_engine)[1]
    _, good = await answer(cloud_engine, channel, prompt, oracle(right[1], 16))
    assert good.accepted > good.steps
    _, bad = await answer(cloud_engine, channel, prompt, oracle(right[1], 16, error=1.0))
    assert bad.accepted == 0
    assert 0 < bad.drafted < 2 * bad.steps


async def test_drafts_do_not_change_where_an_answer_ends(
    cloud_engine: CloudEngine, channel: DraftChannel, right: list[list[int]]
) -> None:
    prompt = prompts(cloud_engine)[1]
    tail = right[1][len(prompt) :]
    stop = cloud_engine.tokenizer.decode(tail[:20])[-6:]
    for options in ({"stop": (stop,)}, {"stop_token_ids": (tail[11],)}, {"max_tokens": 13}):
        plain, end = await answer(cloud_engine, channel, prompt, **options)
        assert len(ids(plain)) < len(tail)
        drafted, drafted_end = await answer(cloud_engine, channel, prompt, oracle(right[1], 16), **options)
        assert (ids(drafted), drafted_end.finish_reason) == (ids(plain), end.finish_reason)
        assert drafted_end.accepted > 0
        assert sum(frame.accepted for frame in drafted) <= len(ids(drafted))


async def test_the_context_ends_an_answer_whatever_is_drafted(cloud_engine: CloudEngine, channel: DraftChannel) -> None:
    prompt = [n + 5 for n in range(CLOUD_CONTEXT - 12)]
    plain, end = await answer(cloud_engine, channel, prompt, max_tokens=100)
    drafted, drafted_end = await answer(
        cloud_engine, channel, prompt, oracle(prompt + ids(plain) + [9] * 100, 40), max_tokens=100
    )
    assert ids(drafted) == ids(plain)
    assert end.finish_reason == drafted_end.finish_reason
    with pytest.raises(ContextLengthError):
        await answer(cloud_engine, channel, [7] * CLOUD_CONTEXT)


async def test_each_token_has_its_logprob(
    cloud_engine: CloudEngine, channel: DraftChannel, right: list[list[int]]
) -> None:
    prompt = prompts(cloud_engine)[2]
    plain, _ = await answer(cloud_engine, channel, prompt, max_tokens=20, logprobs=2)
    drafted, end = await answer(cloud_engine, channel, prompt, oracle(right[2], 8), max_tokens=20, logprobs=2)
    assert end.accepted > 0
    told = [[one for frame in frames for one in frame.logprobs or []] for frames in (plain, drafted)]
    assert [one.token_id for one in told[1]] == ids(drafted)
    assert [one.logprob for one in told[1]] == pytest.approx([one.logprob for one in told[0]], abs=1e-3)
    assert all(len(one.top) == 2 for one in told[1])


async def test_penalties_and_a_schema_hold_with_drafts_too(
    cloud_engine: CloudEngine, channel: DraftChannel, right: list[list[int]]
) -> None:
    prompt = prompts(cloud_engine)[1]
    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    for sampling in (
        Sampling(frequency_penalty=1.5, presence_penalty=0.5),
        Sampling(grammar=GrammarSpec(GrammarKind.JSON, schema)),
    ):
        plain, _ = await answer(cloud_engine, channel, prompt, sampling=sampling, max_tokens=40)
        whole = prompt + ids(plain)
        drafted, end = await answer(cloud_engine, channel, prompt, oracle(whole, 8), sampling=sampling, max_tokens=40)
        assert ids(drafted) == ids(plain)
        assert end.accepted > 0
        wrong, _ = await answer(cloud_engine, channel, prompt, oracle(right[1], 8), sampling=sampling, max_tokens=40)
        assert ids(wrong) == ids(plain)


async def test_closing_an_answer_frees_the_request_and_its_kv(cloud_engine: CloudEngine, channel: DraftChannel) -> None:
    prompt = prompts(cloud_engine)[0]
    with channel.sender() as sender:
        hot = VerifyRound(prompt, [], Sampling(temperature=2.0), 200)
        async with aclosing(ContinuousAnswer(cloud_engine, hot, sender).frames()) as frames:
            await anext(frames)
    await verify(cloud_engine, VerifyRound([1, 2, 3], [], GREEDY, 1))  # a step later
    stats = cloud_engine.stats()
    assert (stats["running"], stats["kv_cache_usage"]) == (0, 0)
