"""Live requests on the demo model draw the tokens of plain decoding, and compute nothing twice."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from vllm.v1.metrics.reader import Counter, get_metrics_snapshot

from cloud.engine.engine import CloudEngine
from cloud.verify import resident_pool, stateless
from cloud.verify.live_request import can_reside
from cloud.verify.resident_pool import CloseReason, ResidentPool
from cloud.verify.round import VerifyRound
from common.grammar.spec import GrammarKind, GrammarSpec
from common.types import GREEDY, Sampling, Verdict
from tests.cloud.engine.test_engine import plain, running_and_kv
from tests.support.sampled_rounds import walk_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOT = Sampling(temperature=2.0)
SUBJECTS = ("quantum computing", "deep learning", "machine learning", "the internet", "gravity", "photosynthesis")
TOKENS = 40


@asynccontextmanager
async def pool_of(engine: CloudEngine, limit: int = 16, idle_seconds: float = 60.0) -> AsyncIterator[ResidentPool]:
    """A pool; asserts at its end that nothing is left in the engine."""
    pool = ResidentPool(engine, limit, idle_seconds)
    try:
        yield pool
    finally:
        await pool.close()
    assert len(pool) == 0
    assert await running_and_kv(engine) == (0, 0)


def chats(engine: CloudEngine) -> list[list[int]]:
    """Questions to which the model's answers are long."""
    asked = [[{"role": "user", "content": f"Explain {subject}"}] for subject in SUBJECTS]
    texts = [engine.tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in asked]
    return [list(engine.tokenizer.encode(text, add_special_tokens=False)) for text in texts]


async def question_and_answer(engine: CloudEngine) -> tuple[list[int], list[int]]:
    prompt = chats(engine)[0]
    right = await plain(engine, prompt, TOKENS)
    assert len(right) == TOKENS
    return prompt, right


def with_errors(rng: random.Random, draft: list[int], error: float, vocab_size: int) -> list[int]:
    return [rng.randrange(vocab_size) if rng.random() < error else token for token in draft]


async def in_rounds(
    engine: CloudEngine, pool: ResidentPool, session: str, prompt: list[int], right: list[int], error: float = 0.25
) -> list[int]:
    """The answer in rounds with drafts of 0 to 16 tokens; rounds that cannot be resident are stateless."""
    rng = random.Random(session)
    drawn: list[int] = []
    while len(drawn) < len(right):
        draft = right[len(drawn) :][: rng.randrange(17)]
        asked = VerifyRound(prompt + drawn, with_errors(rng, draft, error, engine.vocab_size), GREEDY)
        verdict = await pool.verify(session, asked) or await stateless.verify(engine, asked)
        assert verdict.token_ids[: verdict.accepted] == asked.draft[: verdict.accepted]
        drawn += verdict.token_ids
        if verdict.finish_reason:
            break
    return drawn[: len(right)]


async def one(pool: ResidentPool, session: str, committed: list[int], draft: list[int], **other: Any) -> Verdict:
    verdict = await pool.verify(session, VerifyRound(committed, draft, **other))
    assert verdict is not None
    return verdict


def computed() -> tuple[float, float]:
    """Prompt tokens that vLLM has computed so far, and tokens that it has looked up in the prefix cache."""
    found = {metric.name: 0.0 for metric in get_metrics_snapshot()}
    for metric in get_metrics_snapshot():
        if isinstance(metric, Counter) and metric.labels.get("source", "local_compute") == "local_compute":
            found[metric.name] += metric.value
    return found["vllm:prompt_tokens_by_source"], found["vllm:prefix_cache_queries"]


async def all_computed() -> tuple[float, float]:
    """`computed` once nothing more is counted: vLLM counts a step just after it returns its tokens."""
    now, before = computed(), None
    while now != before:
        await asyncio.sleep(0.2)
        now, before = computed(), now
    return now


async def test_nothing_is_computed_twice(cloud_engine: CloudEngine) -> None:
    prompt, right = await question_and_answer(cloud_engine)
    async with pool_of(cloud_engine) as pool:
        await one(pool, "s", prompt, right[:4])
        before = await all_computed()
        for at in (5, 10, 15):
            assert (await one(pool, "s", prompt + right[:at], right[at : at + 4])).accepted == 4
        assert await all_computed() == before
        await stateless.verify(cloud_engine, VerifyRound(prompt + right[:20], right[20:24]))  # this one is counted
        async with asyncio.timeout(10):
            while not (computed()[0] > before[0] and computed()[1] > before[1]):
                await asyncio.sleep(0.01)


async def test_a_sessions_prefix_is_sent_once(cloud_engine: CloudEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    sending = resident_pool.LiveRequest.verify
    prompt, right = await question_and_answer(cloud_engine)

    async def counted(self: resident_pool.LiveRequest, asked: VerifyRound) -> Verdict:
        sent.append(len(asked.committed) - len(self.held))
        return await sending(self, asked)

    monkeypatch.setattr(resident_pool.LiveRequest, "verify", counted)
    async with pool_of(cloud_engine) as pool:
        await one(pool, "s", prompt, right[:3])
        await one(pool, "s", prompt + right[:4], right[4:7])
        await one(
            pool, "s", prompt + right[:10], right[10:12]
        )  # two more tokens that the edge kept without verifying them
    assert sent == [len(prompt), 1, 3]


async def test_parameters_may_change_from_round_to_round(cloud_engine: CloudEngine) -> None:
    prompt, right = await question_and_answer(cloud_engine)
    cold = (GREEDY, Sampling(temperature=2.0, top_k=1), Sampling(temperature=2.0, top_p=1e-6))
    hot = []
    async with pool_of(cloud_engine) as pool:
        for session, at in itertools.product(
            "abcdefgh", range(0, TOKENS - 2, 2)
        ):  # many sessions, because a hot one often draws the likeliest token
            sampling = (HOT, *cold)[at // 2 % 4]
            verdict = await one(pool, session, prompt + right[:at], right[at : at + 1], sampling=sampling)
            if sampling is HOT:
                hot.append(verdict.token_ids == right[at : at + 2])
            else:
                assert verdict.token_ids == right[at : at + 2]
        assert not all(hot)
        assert pool.closed[CloseReason.MISMATCH] == 0


async def test_a_seeded_round_draws_what_it_would_alone(cloud_engine: CloudEngine) -> None:
    walk = await walk_of(cloud_engine)
    seen = set()
    async with pool_of(cloud_engine) as pool:
        for seed in range(8):
            for n, (context, draft) in enumerate(zip(walk.contexts, walk.drafts, strict=True)):
                if n == 2:  # an unseeded round between two seeded ones leaves no trace
                    await pool.verify(f"{seed}", VerifyRound(context, draft, Sampling(temperature=1.0)))
                    continue
                asked = VerifyRound(context, draft, Sampling(temperature=1.0, seed=seed))
                verdict = await pool.verify(f"{seed}", asked)
                assert verdict
                assert verdict.token_ids == (await stateless.verify(cloud_engine, asked)).token_ids
                seen.add((n, *verdict.token_ids))
        assert pool.continued > pool.opened
    assert len(seen) > len(walk.contexts)


async def test_an_empty_draft_draws_several_tokens(cloud_engine: CloudEngine) -> None:
    prompt, right = await question_and_answer(cloud_engine)
    async with pool_of(cloud_engine) as pool:
        first = await one(pool, "s", prompt, right[:2])
        second = await one(pool, "s", prompt + right[:3], [], max_tokens=8)
        third = await one(pool, "s", prompt + right[:11], right[11:13])
        assert first.token_ids + second.token_ids + third.token_ids == right[:14]
        assert (pool.opened, pool.continued) == (1, 2)


async def test_log_probabilities_are_those_of_a_stateless_round(cloud_engine: CloudEngine) -> None:
    prompt, right = await question_and_answer(cloud_engine)
    async with pool_of(cloud_engine) as pool:
        for at in (0, 4, 8):
            asked = VerifyRound(prompt + right[:at], [*right[at : at + 2], right[at + 2] ^ 1], logprobs=3)
            ours = await pool.verify("s", asked)
            theirs = await stateless.verify(cloud_engine, asked)
            assert ours and ours.logprobs and theirs.logprobs
            assert len(ours.logprobs) == len(ours.token_ids) == 3
            for mine, other in zip(ours.logprobs, theirs.logprobs, strict=True):
                assert mine.token_id == other.token_id
                assert mine.logprob == pytest.approx(other.logprob, abs=1e-3)
                assert [token for token, _ in mine.top] == [token for token, _ in other.top]
        assert pool.continued == 2
        changed = VerifyRound(
            prompt + right[:12], right[12:14], logprobs=1
        )  # vLLM reads this once: another live request
        assert (await one(pool, "s", changed.committed, changed.draft, logprobs=1)).logprobs is not None
        assert pool.closed[CloseReason.MISMATCH] == 1


async def test_a_repetition_penalty_counts_all_committed_tokens(cloud_engine: CloudEngine) -> None:
    prompt = chats(cloud_engine)[0]
    penal = Sampling(repetition_penalty=1.8)
    right = (await stateless.verify(cloud_engine, VerifyRound(prompt, [], penal, 20))).token_ids
    assert right != await plain(cloud_engine, prompt, 20)
    drawn: list[int] = []
    async with pool_of(cloud_engine) as pool:
        while len(drawn) < len(right):
            drawn += (await one(pool, "s", prompt + drawn, right[len(drawn) :][:3], sampling=penal)).token_ids
        assert pool.opened == 1
    assert drawn[: len(right)] == right


@pytest.mark.parametrize(
    ("other", "resident_"),
    [
        ({}, True),
        ({"use_kv_cache": False}, False),
        ({"sampling": Sampling(temperature=1.0)}, True),
        ({"sampling": Sampling(temperature=1.0, seed=1)}, True),
        ({"sampling": Sampling(presence_penalty=1.0)}, False),
        ({"sampling": Sampling(frequency_penalty=1.0)}, False),
        ({"sampling": Sampling(grammar=GrammarSpec(GrammarKind.JSON, "{}"))}, False),
        ({"sampling": Sampling(repetition_penalty=1.1)}, True),
    ],
)
async def test_only_rounds_that_a_live_request_draws_alike_may_be_resident(
    other: dict[str, Any], resident_: bool
) -> None:
    assert can_reside(VerifyRound([1], [2], **other)) is resident_
