"""Sampled rounds of every form draw from the distribution of plain sampling by the same engine.

The tokens after a context are compared position by position, where all draft tokens before were accepted. The positions
are independent, and together they cover everything that a round can draw. Each comparison is a two-sample chi-square
test, summed over the contexts.
"""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
import torch

from cloud.engine.engine import CloudEngine
from common.types import Sampling
from tests.conftest import CLOUD_CONTEXT, CLOUD_MODEL
from tests.support.engines import started
from tests.support.sampled_rounds import (
    POSITIONS,
    ContextWalk,
    Form,
    Samples,
    continuously,
    plainly,
    residently,
    statelessly,
    walk_of,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

FORMS = [statelessly, residently, continuously]
SETTINGS = [
    Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    for temperature in (0.7, 1.0)
    for top_k in (0, 12)
    for top_p in (1.0, 0.9)
]
FEWEST = 5
"""Tokens with a lower expected count in the smaller sample are pooled, as the chi-square test requires."""
SUSPICIOUS = 0.001
FEW = 600
MANY = 5700
"""Rounds of a setting; without those whose drafts were cut or that do not count, at least 5,000 are left."""
DIFFERENT = 1e-6
"""A p-value that a right sampler would not reach in a thousand runs of these tests."""


def name(sampling: Sampling) -> str:
    return f"t{sampling.temperature}-k{sampling.top_k}-p{sampling.top_p}"


def p_value(a: list[Counter[int]], b: list[Counter[int]]) -> float:
    """The probability of samples at least as different if both have the same distribution in each context."""
    statistic, freedom = 0.0, 0
    for ours, theirs in zip(a, b, strict=True):
        cells = pooled(ours, theirs)
        totals = [sum(column) for column in zip(*cells, strict=True)]
        for cell in cells:
            expected = [sum(cell) * total / sum(totals) for total in totals]
            statistic += sum((seen - wanted) ** 2 / wanted for seen, wanted in zip(cell, expected, strict=True))
        freedom += max(0, len(cells) - 1)
    assert freedom > 1, "too few different tokens were drawn to tell distributions apart"
    return float(torch.special.gammaincc(torch.tensor(freedom / 2).double(), torch.tensor(statistic / 2).double()))


def pooled(a: Counter[int], b: Counter[int]) -> list[tuple[int, int]]:
    """The counts of each token in both samples; tokens that are rare in both together are pooled."""
    both = a + b
    share = min(a.total(), b.total()) / max(1, both.total())
    common = [token for token in both if both[token] * share >= FEWEST]
    cells = [(a[token], b[token]) for token in common]
    rare = (a.total() - sum(x for x, _ in cells), b.total() - sum(y for _, y in cells))
    return [*cells, rare] if sum(rare) * share >= FEWEST else cells


def p_values(rounds: Samples, plain: Samples, walk: ContextWalk) -> list[float]:
    """One p-value for each position of the draft."""
    return [p_value(rounds.at(n, walk), plain.at(n, walk)) for n in range(1, POSITIONS + 1)]


async def assert_same(
    engine: CloudEngine, walk: ContextWalk, form: Form, sampling: Sampling, times: int, plain: Samples
) -> Samples:
    """Asserts that `times` rounds draw like `plain`, and returns them.

    A right sampler has a suspicious p-value at one position in a thousand. So a suspicious comparison is repeated with
    new samples: a right sampler then fails at most once in a hundred thousand times, a wrong one fails again.
    """
    for chance in (1, 2):
        rounds = await form(engine, walk, sampling, times)
        assert rounds.verified > 0.9 * times
        found = p_values(rounds, plain, walk)
        print(f"{form.__name__} {name(sampling)} {rounds.verified}: p = {', '.join(f'{p:.4f}' for p in found)}")
        if min(found) > SUSPICIOUS:
            break
        assert chance == 1, f"{found} is suspicious again"
        plain = await plainly(engine, walk, sampling, times)
    return rounds


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def walk(cloud_engine: CloudEngine) -> ContextWalk:
    return await walk_of(cloud_engine)


async def test_each_position_of_the_drafts_is_sometimes_accepted_and_sometimes_not(
    cloud_engine: CloudEngine, walk: ContextWalk
) -> None:
    plain = await plainly(cloud_engine, walk, Sampling(temperature=1.0), 1600)
    for position in range(1, POSITIONS + 1):
        for counts, draft in zip(plain.at(position, walk), walk.drafts, strict=True):
            # Chance now and then carries the share of a likely token across any bound.
            assert 0 < counts[draft[position - 1]] < counts.total()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def plain_and_colder(cloud_engine: CloudEngine, walk: ContextWalk) -> list[Samples]:
    return [await plainly(cloud_engine, walk, Sampling(temperature=t, top_k=12), FEW) for t in (1.0, 0.5)]


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("form", FORMS)
async def test_a_few_hundred_rounds_draw_like_plain_sampling_and_unlike_a_colder_one(
    cloud_engine: CloudEngine, walk: ContextWalk, form: Form, seed: int | None, plain_and_colder: list[Samples]
) -> None:
    sampling = Sampling(temperature=1.0, top_k=12, seed=seed)
    rounds = await assert_same(cloud_engine, walk, form, sampling, FEW, plain_and_colder[0])
    assert min(p_values(rounds, plain_and_colder[1], walk)) < DIFFERENT


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=SETTINGS, ids=name)
async def sampling_and_plain(
    request: pytest.FixtureRequest, cloud_engine: CloudEngine, walk: ContextWalk
) -> tuple[Sampling, Samples]:
    """One setting, with its plain samples."""
    return request.param, await plainly(cloud_engine, walk, request.param, MANY)


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
async def test_five_thousand_rounds_draw_like_plain_sampling(
    cloud_engine: CloudEngine, walk: ContextWalk, form: Form, sampling_and_plain: tuple[Sampling, Samples]
) -> None:
    sampling, plain = sampling_and_plain
    rounds = await assert_same(cloud_engine, walk, form, sampling, MANY, plain)
    assert rounds.verified >= 5000


@asynccontextmanager
async def engine_with(proposer: str, scheduler: str) -> AsyncIterator[CloudEngine]:
    args = {"dtype": "float32", "max_model_len": CLOUD_CONTEXT, "kv_cache_memory_bytes": 2**26}
    engine = CloudEngine(str(CLOUD_MODEL), args=args)
    engine._args.speculative_config["model"] = proposer
    engine._args.scheduler_cls = scheduler
    async with started(engine):
        yield engine


@pytest.mark.long
async def test_without_its_guard_vllm_draws_differently_and_these_tests_notice() -> None:
    sampling = Sampling(temperature=0.7, top_k=12)
    async with engine_with(
        "tests.support.engines.UnguardedProposer", "cloud.vllm_plugin.scheduler.RemoteDraftScheduler"
    ) as engine:
        walk = await walk_of(engine)
        plain = await plainly(engine, walk, sampling, 1000)
        for form in FORMS:
            found = p_values(await form(engine, walk, sampling, 1000), plain, walk)
            print(f"{form.__name__} without its guard: p = {found}")
            assert min(found) < DIFFERENT


@pytest.mark.long
async def test_a_draft_that_contradicts_the_answer_costs_time_and_changes_nothing() -> None:
    """Verifying is lossless for any draft; mailboxes drop contradicted ones only to save time."""
    sampling = Sampling(temperature=1.0)
    async with engine_with(
        "cloud.vllm_plugin.scheduler.NoProposer", "tests.support.engines.CredulousScheduler"
    ) as engine:
        walk = await walk_of(engine)

        async def contradicted(engine: CloudEngine, walk: ContextWalk, sampling: Sampling, times: int) -> Samples:
            return await continuously(engine, walk, sampling, times, contradiction=0)

        plain = await plainly(engine, walk, sampling, 1000)
        await assert_same(engine, walk, contradicted, sampling, 1000, plain)
