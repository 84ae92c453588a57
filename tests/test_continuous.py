"""The continuous form on the demo model: drafts change how fast tokens come, never which ones."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio
import torch

from cloud.continuous import ContinuousAnswer
from cloud.draft_channel import DraftChannel
from cloud.engine import CloudEngine
from cloud.rounds import Round
from cloud.stateless import verify
from common.errors import ContextLengthError
from common.frames import EndFrame, TokensFrame
from common.types import GREEDY, Sampling
from tests.conftest import CLOUD_CONTEXT
from tests.test_distribution import engine_with

pytestmark = pytest.mark.asyncio(loop_scope="session")

QUESTIONS = ("What is AI?", "Explain quantum computing", "Explain deep learning", "What is machine learning?")
ANSWER = 60
SPREAD = [500, 1203, 77, 2048, 911, 64, 3001]
"""A prompt that makes no sense to the model, which then is sure of nothing."""

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


def oracle(
    right: list[int], length: int = 8, error: float = 0.0, shift: int = 0, times: int = 1, lag: int = 0
) -> Drafting:
    """Drafts what follows, each token wrong with probability `error`, `times` times.

    The draft begins `shift` tokens past what is known, and what is known may be as of `lag` frames ago.
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
    """Drafts from places before and after what is known, in any order."""
    rng = random.Random(3)

    async def draft(running: ContinuousAnswer, known: list[int]) -> None:
        for _ in range(3):
            position = max(0, len(known) + rng.randrange(-12, 12))
            if drafted := right[position : position + 20]:
                running.draft(position, drafted)

    return draft


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def right(cloud_engine: CloudEngine) -> list[list[int]]:
    """Each prompt with the answer that the engine gives alone."""
    asked = prompts(cloud_engine)
    plain = await asyncio.gather(*(verify(cloud_engine, Round(p, [], GREEDY, ANSWER)) for p in asked))
    return [prompt + verdict.token_ids for prompt, verdict in zip(asked, plain, strict=True)]


async def test_without_drafts_it_is_plain_streaming(
    cloud_engine: CloudEngine, channel: DraftChannel, right: list[list[int]]
) -> None:
    prompt = prompts(cloud_engine)[0]
    frames, end = await answer(cloud_engine, channel, prompt)
    assert prompt + ids(frames) == right[0]
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
async def test_greedy_tokens_are_the_same_with_drafts_that_are(
    cloud_engine: CloudEngine,
    channel: DraftChannel,
    right: list[list[int]],
    drafting: Callable[[list[int]], Drafting],
) -> None:
    for prompt, whole in zip(prompts(cloud_engine), right, strict=True):
        frames, end = await answer(cloud_engine, channel, prompt, drafting(whole))
        assert prompt + ids(frames) == whole
        assert end.accepted == sum(frame.accepted for frame in frames)
        # Each step draws one token of its own, unless the draft foretold the answer's end.
        assert 0 <= end.accepted + end.steps - len(ids(frames)) <= 1


async def test_right_drafts_save_steps_and_wrong_ones_are_soon_not_verified(
    cloud_engine: CloudEngine, channel: DraftChannel, right: list[list[int]]
) -> None:
    prompt = prompts(cloud_engine)[1]
    _, good = await answer(cloud_engine, channel, prompt, oracle(right[1], 16))
    assert good.accepted > good.steps
    _, bad = await answer(cloud_engine, channel, prompt, oracle(right[1], 16, error=1.0))
    assert bad.accepted == 0
    assert 0 < bad.drafted < 2 * bad.steps


async def test_sixty_four_answers_at_once_with_random_errors_are_exact(
    cloud_engine: CloudEngine, channel: DraftChannel, right: list[list[int]]
) -> None:
    asked = prompts(cloud_engine)
    jobs = [
        answer(cloud_engine, channel, asked[n % 4], oracle(right[n % 4], 1 + n % 24, error=(n % 5) / 8, lag=n % 3))
        for n in range(64)
    ]
    answers = await asyncio.gather(*jobs)
    assert [asked[n % 4] + ids(frames) for n, (frames, _) in enumerate(answers)] == right * 16
    assert sum(end.accepted for _, end in answers) > 0


async def test_an_answer_ends_where_it_ends_without_drafts(
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
    for sampling in (Sampling(frequency_penalty=1.5, presence_penalty=0.5), Sampling(json_schema=schema)):
        plain, _ = await answer(cloud_engine, channel, prompt, sampling=sampling, max_tokens=40)
        whole = prompt + ids(plain)
        drafted, end = await answer(cloud_engine, channel, prompt, oracle(whole, 8), sampling, max_tokens=40)
        assert ids(drafted) == ids(plain)
        assert end.accepted > 0
        wrong, _ = await answer(cloud_engine, channel, prompt, oracle(right[1], 8), sampling, max_tokens=40)
        assert ids(wrong) == ids(plain)


async def test_leaving_frees_the_request_and_its_kv(cloud_engine: CloudEngine, channel: DraftChannel) -> None:
    prompt = prompts(cloud_engine)[0]
    with channel.sender() as sender:
        hot = Round(prompt, [], Sampling(temperature=2.0), 200)
        async with aclosing(ContinuousAnswer(cloud_engine, hot, sender).frames()) as frames:
            await anext(frames)
    await verify(cloud_engine, Round([1, 2, 3], [], GREEDY, 1))  # a step later
    stats = cloud_engine.stats()
    assert (stats["running"], stats["kv_cache_usage"]) == (0, 0)


SETTINGS = [
    Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    for temperature in (0.7, 1.0)
    for top_k, top_p in ((0, 1.0), (6, 1.0), (0, 0.9), (6, 0.9))
]


async def sampled(
    engine: CloudEngine, channel: DraftChannel, sampling: Sampling, count: int, draft: list[int]
) -> tuple[list[list[int]], int]:
    """`count` answers of four tokens, with a draft that begins behind their first; and how many had it verified."""
    prompt = SPREAD

    async def one() -> tuple[list[int], bool]:
        async def early(running: ContinuousAnswer, known: list[int]) -> None:
            if len(known) == len(prompt) and draft:
                running.draft(len(prompt) + 1, draft)

        frames, end = await answer(engine, channel, prompt, early, sampling, max_tokens=5)
        return ids(frames), end.drafted > 0

    gate = asyncio.Semaphore(64)

    async def in_turn() -> tuple[list[int], bool]:
        async with gate:
            return await one()

    drawn = await asyncio.gather(*(in_turn() for _ in range(count)))
    return [tokens for tokens, _ in drawn], sum(verified for _, verified in drawn)


def likely(samples: list[list[int]]) -> list[int]:
    """The likeliest token of each of the draft's positions."""
    return [Counter(tokens[at] for tokens in samples if len(tokens) > at).most_common(1)[0][0] for at in (1, 2, 3)]


def p_value(a: Counter[int], b: Counter[int]) -> float:
    """Of the two-sample chi-square test; tokens seen fewer than ten times in all count as one."""
    scale = (sum(a.values()) / sum(b.values())) ** 0.5
    cells: dict[int, list[int]] = {}
    for token in a.keys() | b.keys():
        cell = cells.setdefault(token if a[token] + b[token] >= 10 else -1, [0, 0])
        cell[0] += a[token]
        cell[1] += b[token]
    statistic = sum((x / scale - y * scale) ** 2 / (x + y) for x, y in cells.values())
    return float(torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2), torch.tensor(statistic / 2)))


def p_values(with_drafts: list[list[int]], without: list[list[int]]) -> list[float]:
    """One for each of the draft's positions."""
    return [
        p_value(*(Counter(tokens[at] for tokens in drawn if len(tokens) > at) for drawn in (with_drafts, without)))
        for at in (1, 2, 3)
    ]


async def test_sampled_tokens_have_the_same_distribution_with_drafts(
    cloud_engine: CloudEngine, channel: DraftChannel
) -> None:
    sampling = Sampling(temperature=1.0, top_k=6)
    without, _ = await sampled(cloud_engine, channel, sampling, 600, [])
    with_drafts, verified = await sampled(cloud_engine, channel, sampling, 600, likely(without))
    assert verified > 300
    assert min(p_values(with_drafts, without)) > 0.0001
    colder, _ = await sampled(cloud_engine, channel, Sampling(temperature=0.4, top_k=6), 600, likely(without))
    assert min(p_values(colder, without)) < 0.0001


@pytest.mark.long
@pytest.mark.parametrize("sampling", SETTINGS, ids=lambda s: f"t{s.temperature}-k{s.top_k}-p{s.top_p}")
async def test_five_thousand_samples_have_the_same_distribution_with_drafts(
    cloud_engine: CloudEngine, channel: DraftChannel, sampling: Sampling
) -> None:
    without, _ = await sampled(cloud_engine, channel, sampling, 5000, [])
    with_drafts, verified = await sampled(cloud_engine, channel, sampling, 5000, likely(without))
    found = p_values(with_drafts, without)
    print(sampling, verified, [f"{p:.4f}" for p in found])
    assert verified > 2500
    assert min(found) > 0.001


@pytest.mark.long
async def test_without_the_guard_the_distribution_is_wrong(channel: DraftChannel) -> None:
    sampling = Sampling(temperature=0.7, top_k=6)
    async with engine_with("tests.unguarded.UnguardedProposer") as engine:
        without, _ = await sampled(engine, channel, sampling, 1500, [])
        with_drafts, verified = await sampled(engine, channel, sampling, 1500, likely(without))
        assert verified > 750
        assert min(p_values(with_drafts, without)) < 0.001
