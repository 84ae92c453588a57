"""Sampled rounds draw from the very distribution of plain sampling by the same engine, whatever form they have."""

import asyncio
import itertools
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
import torch

from cloud import stateless
from cloud.engine import CloudEngine
from cloud.resident import Closed, ResidentPool
from cloud.rounds import Round, agreed, vllm_params
from common.types import GREEDY, Sampling, Verdict
from tests.conftest import CLOUD_CONTEXT, CLOUD_MODEL

pytestmark = pytest.mark.asyncio(loop_scope="session")

POSITIONS = 3
CONTEXTS = 4
AT_ONCE = 16
TOGETHER = 25
"""Plain samples that one request draws."""
FEWEST = 5
"""Tokens drawn more rarely than this (over both samples) are counted as one: chi-square needs that."""
SETTINGS = [
    Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    for temperature, top_k, top_p in itertools.product((0.7, 1.0), (0, 12), (1.0, 0.9))
]
SUSPICIOUS = 0.001

Drawn = Counter[tuple[int, ...]]


@dataclass
class Walk:
    """Contexts, each the next one's beginning, and a draft after each."""

    contexts: list[list[int]]
    drafts: list[list[int]]


@dataclass
class Samples:
    """What was drawn after each context: at most the draft's length and one, up to the first that differs from it."""

    by_context: list[Drawn] = field(default_factory=lambda: [Counter() for _ in range(CONTEXTS)])

    def at(self, position: int, walk: Walk) -> list[Counter[int]]:
        """For each context, the tokens drawn at a position of the draft that all of the earlier ones led to."""
        found = []
        for drawn, draft in zip(self.by_context, walk.drafts, strict=True):
            counts: Counter[int] = Counter()
            for tokens, times in drawn.items():
                if len(tokens) >= position and list(tokens[: position - 1]) == draft[: position - 1]:
                    counts[tokens[position - 1]] += times
            found.append(counts)
        return found


Form = Callable[[CloudEngine, Walk, Sampling, int], Awaitable[Samples]]


async def walk_of(engine: CloudEngine) -> Walk:
    """Places in a far-fetched answer where the likeliest next tokens, the draft, are about as likely as not.

    After each the text goes on with its draft: what a round accepts of it, a live request may keep.
    """
    question = [{"role": "user", "content": "Explain gravity"}]
    prompt = engine.tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    text = list(engine.tokenizer.encode(prompt, add_special_tokens=False))
    walk = Walk([], [])
    for seed in range(CONTEXTS):
        params = vllm_params(Round(text, [], Sampling(temperature=1.8, seed=seed), 40), ignore_eos=True)
        async with aclosing(engine.generate(text, params)) as outputs:
            hot = list((await anext(outputs)).outputs[0].token_ids)
        places = [text + hot[:n] for n in range(1, len(hot))]
        drafts = [await stateless.verify(engine, Round(place, [], GREEDY, POSITIONS, logprobs=0)) for place in places]
        place, draft = min(zip(places, drafts, strict=True), key=lambda found: decidedness(found[1]))
        walk.contexts.append(place)
        walk.drafts.append(draft.token_ids)
        text = place + draft.token_ids
    return walk


def decidedness(verdict: Verdict) -> float:
    """How far the likeliest tokens' probabilities are from even, at most; more for a draft that ends the answer."""
    probabilities = [math.exp(one.logprob) for one in verdict.logprobs or []]
    return 1.0 if verdict.finished else max(abs(p - 0.5) for p in probabilities)


async def plainly(engine: CloudEngine, walk: Walk, sampling: Sampling, times: int) -> Samples:
    """Plain sampling, cut where a verify would end."""
    samples = Samples()

    async def sample(at: int) -> None:
        params = vllm_params(Round(walk.contexts[at], [], sampling, POSITIONS + 1), n=TOGETHER)
        async with aclosing(engine.generate(walk.contexts[at], params)) as outputs:
            for output in (await anext(outputs)).outputs:
                drawn = list(output.token_ids)
                samples.by_context[at][tuple(drawn[: agreed(drawn, walk.drafts[at]) + 1])] += 1

    await in_batches([sample(at) for at in range(CONTEXTS) for _ in range(times // CONTEXTS // TOGETHER)])
    return samples


async def statelessly(engine: CloudEngine, walk: Walk, sampling: Sampling, times: int) -> Samples:
    samples = Samples()

    async def sample(at: int) -> None:
        verdict = await stateless.verify(engine, Round(walk.contexts[at], walk.drafts[at], sampling))
        samples.by_context[at][tuple(verdict.token_ids)] += 1

    await in_batches([sample(at) for at in range(CONTEXTS) for _ in range(times // CONTEXTS)])
    return samples


async def residently(engine: CloudEngine, walk: Walk, sampling: Sampling, times: int) -> Samples:
    """Each session walks through all contexts, committing the text whatever was drawn."""
    samples = Samples()
    pool = ResidentPool(engine, AT_ONCE, 60.0)

    async def sample(session: str) -> None:
        for at in range(CONTEXTS):
            verdict = await pool.verify(session, Round(walk.contexts[at], walk.drafts[at], sampling))
            assert verdict is not None
            samples.by_context[at][tuple(verdict.token_ids)] += 1
        await pool.close_session(session)

    await in_batches([sample(f"{n}") for n in range(times // CONTEXTS)])
    assert pool.continued > pool.opened and not pool.closed[Closed.MISMATCH]
    await pool.close()
    return samples


async def in_batches(jobs: Sequence[Awaitable[None]]) -> None:
    """Many at once, so that requests with and without drafts share steps, but not all."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def gated(job: Awaitable[None]) -> None:
        async with gate:
            await job

    await asyncio.gather(*map(gated, jobs))


def p_value(a: list[Counter[int]], b: list[Counter[int]]) -> float:
    """How likely samples at least as different are if both come from one distribution in each context (chi-square)."""
    statistic, freedom = 0.0, 0
    for ours, theirs in zip(a, b, strict=True):
        cells = pooled(ours, theirs)
        totals = [sum(cell[side] for cell in cells) for side in (0, 1)]
        if len(cells) < 2 or not all(totals):
            continue
        for cell in cells:
            expected = [sum(cell) * total / sum(totals) for total in totals]
            statistic += sum((seen - wanted) ** 2 / wanted for seen, wanted in zip(cell, expected, strict=True))
        freedom += len(cells) - 1
    assert freedom > 1, "too few different tokens were drawn to tell distributions apart"
    return float(torch.special.gammaincc(torch.tensor(freedom / 2).double(), torch.tensor(statistic / 2).double()))


def pooled(a: Counter[int], b: Counter[int]) -> list[tuple[int, int]]:
    """How often each token was drawn in either sample, the rare ones as one."""
    cells, rare = [], [0, 0]
    for token in a.keys() | b.keys():
        if a[token] + b[token] >= 2 * FEWEST:
            cells.append((a[token], b[token]))
        else:
            rare[0] += a[token]
            rare[1] += b[token]
    return [*cells, (rare[0], rare[1])] if sum(rare) >= 2 * FEWEST else cells


async def p_values(engine: CloudEngine, walk: Walk, form: Form, sampling: Sampling, times: int) -> list[float]:
    """For each position of the draft: `times` rounds against as many plain samples."""
    rounds, plain = await form(engine, walk, sampling, times), await plainly(engine, walk, sampling, times)
    return [p_value(rounds.at(n, walk), plain.at(n, walk)) for n in range(1, POSITIONS + 1)]


async def assert_same(engine: CloudEngine, walk: Walk, form: Form, sampling: Sampling, times: int) -> None:
    """One in a thousand right ones looks wrong, so what does is drawn once more: twice is one in a million."""
    found = await p_values(engine, walk, form, sampling, times)
    if min(found) <= SUSPICIOUS:
        found = await p_values(engine, walk, form, sampling, times)
    print(f"{form.__name__} {sampling}: p = {', '.join(f'{p:.3f}' for p in found)}")
    assert min(found) > SUSPICIOUS


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def walk(cloud_engine: CloudEngine) -> Walk:
    return await walk_of(cloud_engine)


@pytest.mark.parametrize("form", [statelessly, residently])
async def test_a_few_hundred_rounds_draw_like_plain_sampling(cloud_engine: CloudEngine, walk: Walk, form: Form) -> None:
    await assert_same(cloud_engine, walk, form, Sampling(temperature=1.0, top_k=12), 800)


@pytest.mark.parametrize("form", [statelessly, residently])
async def test_another_temperature_is_noticed(cloud_engine: CloudEngine, walk: Walk, form: Form) -> None:
    rounds = await form(cloud_engine, walk, Sampling(temperature=1.0), 800)
    plain = await plainly(cloud_engine, walk, Sampling(temperature=0.7), 800)
    assert p_value(rounds.at(1, walk), plain.at(1, walk)) < SUSPICIOUS


@pytest.mark.long
@pytest.mark.parametrize("sampling", SETTINGS, ids=lambda s: f"t{s.temperature}-k{s.top_k}-p{s.top_p}")
@pytest.mark.parametrize("form", [statelessly, residently])
async def test_5000_rounds_draw_like_plain_sampling(
    cloud_engine: CloudEngine, walk: Walk, form: Form, sampling: Sampling
) -> None:
    await assert_same(cloud_engine, walk, form, sampling, 5000)


@asynccontextmanager
async def engine_with(proposer: str) -> AsyncIterator[CloudEngine]:
    args = {"dtype": "float32", "max_model_len": CLOUD_CONTEXT, "kv_cache_memory_bytes": 2**26}
    engine = CloudEngine(str(CLOUD_MODEL), args=args)
    engine._args.speculative_config["model"] = proposer
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


@pytest.mark.long
async def test_without_its_guard_vllm_draws_differently_and_the_test_says_so() -> None:
    sampling = Sampling(temperature=0.7, top_k=12)
    async with engine_with("tests.unguarded.UnguardedProposer") as engine:
        walk = await walk_of(engine)
        for form in (statelessly, residently):
            assert min(await p_values(engine, walk, form, sampling, 1000)) <= SUSPICIOUS
    async with engine_with("cloud.vllm_plugin.NoProposer") as engine:
        for form in (statelessly, residently):
            await assert_same(engine, walk, form, sampling, 1000)
