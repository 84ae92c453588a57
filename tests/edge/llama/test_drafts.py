"""Drafts, prompts and snapshots in engines with each kind of model: answers are right, little is decoded twice."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from common.config_edge import EdgeModelConfig
from edge.engine.engine import EdgeEngine
from edge.engine.scheduler import LONG_PROMPT
from edge.engine.sequence import EdgeSequence
from edge.kv_cache import LlamaCppKVCache
from tests.edge.llama.random_models import KINDS, RECURRENT
from tests.edge.test_kv_restore import answer, assert_same

DRAFT = 16
SHORT, LONG = LONG_PROMPT + 8, 900
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
BOTH_LAYOUTS = pytest.mark.parametrize("unified", [False, True], ids=["own", "unified"])


@asynccontextmanager
async def engine_of(
    path: Path, store: LlamaCppKVCache | None = None, sequences: int = 2, unified: bool = False
) -> AsyncIterator[EdgeEngine]:
    model = EdgeModelConfig(
        path=str(path), context_length=1024, threads=1, sequences=sequences, kv_unified=unified, kv_type="f32"
    )
    async with EdgeEngine(model, store=store) as engine:
        yield engine


def prompt_of(length: int, seed: int = 1) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(10, 4000) for _ in range(length)]


async def decoded_by_rejections(engine: EdgeEngine, sequence: EdgeSequence, prompt: list[int]) -> list[int]:
    """How many tokens each draft decodes, when of the drafts before it 0 to DRAFT tokens were accepted."""
    source, tokens, counts = random.Random(2), list(prompt), []
    await sequence.draft(tokens, DRAFT)
    for _ in range(12):
        before = engine.stats()["decoded_tokens"]
        draft = await sequence.draft(tokens, DRAFT)
        counts.append(engine.stats()["decoded_tokens"] - before)
        tokens += [*draft.token_ids[: source.randrange(DRAFT + 1)], source.randrange(10, 4000)]
    return counts


@BOTH_LAYOUTS
@EVERY_KIND
async def test_the_tokens_decoded_after_a_rejected_draft_do_not_grow_with_the_prompt(
    models: dict[str, Path], kind: str, unified: bool
) -> None:
    async with engine_of(models[kind], unified=unified) as engine:
        counts = []
        for length in (SHORT, LONG):
            prompt = prompt_of(length)
            async with engine.sequence(prompt) as sequence:
                counts.append(await decoded_by_rejections(engine, sequence, prompt))
        assert counts[0] == counts[1]
        assert max(counts[0]) <= 2 * DRAFT


@EVERY_KIND
async def test_a_draft_after_a_rejected_one_is_that_of_a_fresh_context(models: dict[str, Path], kind: str) -> None:
    source, prompt = random.Random(3), prompt_of(100)
    async with (
        engine_of(models[kind]) as engine,
        engine_of(models[kind], sequences=1) as fresh,
        engine.sequence(prompt) as sequence,
    ):
        for _ in range(8):
            draft = await sequence.draft(prompt, DRAFT, top_logprobs=5)
            assert_same(draft, await answer(fresh, prompt, reuse=False))
            prompt += [*draft.token_ids[: source.randrange(DRAFT)], source.randrange(10, 4000)]


@EVERY_KIND
async def test_many_requests_that_draft_ahead_reject_and_leave_get_the_answers_of_a_fresh_context(
    models: dict[str, Path], kind: str
) -> None:
    """Three at a time on two sequences, with common beginnings: prefixes are copied, kept and found again."""

    async def request(seed: int) -> None:
        source = random.Random(seed)
        prompt = prompt_of(60, seed % 2) + prompt_of(source.randrange(1, 60), seed)
        async with engine.sequence(prompt) as sequence:
            for _ in range(3):
                ahead = asyncio.create_task(sequence.draft([*prompt, *prompt_of(9, seed + 1)], DRAFT))
                await asyncio.sleep(source.random() / 50)
                ahead.cancel()
                await asyncio.wait([ahead])
                draft = await sequence.draft(prompt, DRAFT, top_logprobs=5)
                assert_same(draft, await answer(fresh, list(prompt), reuse=False))
                prompt += [*draft.token_ids[: source.randrange(DRAFT)], source.randrange(10, 4000)]

    store = LlamaCppKVCache()
    async with engine_of(models[kind], store) as engine, engine_of(models[kind], sequences=1) as fresh:
        for first in range(0, 12, 3):
            await asyncio.gather(*map(request, range(first, first + 3)))
        assert engine.stats()["kv_dropped"] == 0


@BOTH_LAYOUTS
@EVERY_KIND
async def test_the_same_prompt_is_not_read_again(models: dict[str, Path], kind: str, unified: bool) -> None:
    prompt = prompt_of(300)
    async with engine_of(models[kind], LlamaCppKVCache(), unified=unified) as engine:
        first = await answer(engine, prompt)
        async with engine.sequence(prompt) as one, engine.sequence(prompt) as other:
            for sequence in (one, other):
                before = engine.stats()["reused_prompt_tokens"]
                assert_same(await sequence.draft(prompt, DRAFT, top_logprobs=5), first)
                assert engine.stats()["reused_prompt_tokens"] - before == len(prompt) - 1


@pytest.mark.parametrize("kind", RECURRENT)
async def test_a_prompt_that_can_reuse_nothing_of_a_sequence_leaves_it_to_others(
    models: dict[str, Path], kind: str
) -> None:
    prompt = prompt_of(120)
    async with engine_of(models[kind], LlamaCppKVCache()) as engine:
        await answer(engine, prompt)
        await answer(engine, prompt[:-20] + prompt_of(20, 9))
        before = engine.stats()["reused_prompt_tokens"]
        await answer(engine, prompt)
        assert engine.stats()["reused_prompt_tokens"] - before == len(prompt) - 1


@pytest.mark.parametrize("place", ["kv_live_hits", "kv_ram_hits", "kv_disk_hits"])
@EVERY_KIND
async def test_the_next_turn_of_a_conversation_reads_only_what_is_new(
    models: dict[str, Path], kind: str, place: str, tmp_path: Path
) -> None:
    prompt = prompt_of(300)
    store = LlamaCppKVCache(ram_bytes=0 if place == "kv_disk_hits" else 1 << 30, directory=tmp_path)
    async with engine_of(models[kind], store, sequences=1) as engine:
        next_turn = prompt + (await answer(engine, prompt)).token_ids + prompt_of(30, 5)
        cold = await answer(engine, next_turn, reuse=False)
        await answer(engine, prompt)
        if place != "kv_live_hits":
            await answer(engine, prompt_of(200, 6))
            await asyncio.to_thread(store.flush)
        before = engine.stats()
        assert_same(await answer(engine, next_turn), cold)
        after = engine.stats()
        assert after[place] == before[place] + 1
        assert after["reused_prompt_tokens"] - before["reused_prompt_tokens"] == len(prompt) + DRAFT - 1


@pytest.mark.parametrize("kind", RECURRENT)
async def test_a_snapshot_of_a_recurrent_state_serves_no_prompt_that_begins_with_a_part_of_it(
    models: dict[str, Path], kind: str
) -> None:
    prompt, other = prompt_of(300), prompt_of(200) + prompt_of(50, 7)
    store = LlamaCppKVCache()
    async with engine_of(models[kind], store, sequences=1) as engine:
        cold = await answer(engine, other, reuse=False)
        await answer(engine, prompt)
        await answer(engine, prompt_of(200, 8))
        await asyncio.to_thread(store.flush)
        assert_same(await answer(engine, other), cold)
        assert engine.stats()["kv_ram_hits"] == 0
