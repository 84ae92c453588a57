"""The prefix cache on the real engine: restored KV gives the same answers as computed KV, damaged KV is never loaded.

Q8_0 weights round slightly differently when the same tokens are decoded in other portions, and a cell's place in the
cache changes the order of a sum. So two greedy answers may differ, but only from a token on where both candidates are
almost equally likely: the tests check this at the first difference.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from common.config_edge import EdgeModelConfig
from common.types import GREEDY, Draft
from edge.engine.engine import EdgeEngine
from edge.kv import snapshot_format
from edge.kv.snapshot_index import SnapshotEntry
from edge.kv_cache import AblatedKVCache, LlamaCppKVCache
from edge.llama.batch import SequenceTokens
from edge.llama.model import Llama

MODEL = "models/demo-edge.gguf"
LENGTH = 16
NEAR_TIE = 0.05
"""Two tokens count as equally likely if their log probabilities (natural) differ by less than this."""
STORY = "<|user|>" + "Explain deep learning, quantum computing, the Internet and the capital of France. " * 12
QUESTIONS = ("What is AI?", "What is machine learning?", "Sort 3 1 2", "What is 12 + 7?")
PROMPT = [random.Random(1).randrange(100, 4000) for _ in range(200)]
TIERS = {"live": "kv_live_hits", "RAM": "kv_ram_hits", "disk": "kv_disk_hits", "disk, zstd": "kv_disk_hits"}


@asynccontextmanager
async def engine_of(
    tier: str,
    folder: Path,
    **layout: Any,
) -> AsyncIterator[EdgeEngine]:
    """An engine whose store has one tier only, besides the live sequences."""
    on_disk = tier.startswith("disk")
    store = LlamaCppKVCache(
        ram_bytes=0 if on_disk else 1 << 30,
        directory=folder if on_disk else None,
        enable_compression=tier.endswith("zstd"),
    )
    async with EdgeEngine(EdgeModelConfig(path=MODEL, threads=1, **{"sequences": 2} | layout), store=store) as engine:
        yield engine


def prompts(engine: EdgeEngine) -> list[list[int]]:
    texts = [f"{STORY}{question}<|assistant|>" for question in QUESTIONS]
    return [engine.tokenize(text, add_special=False, parse_special=True) for text in texts]


async def answer(engine: EdgeEngine, prompt: list[int], reuse: bool = True) -> Draft:
    async with engine.sequence(prompt, reuse) as sequence:
        return await sequence.draft(prompt, LENGTH, GREEDY, top_logprobs=5)


async def make_known(engine: EdgeEngine, tier: str, prompt: list[int]) -> None:
    """Puts `prompt` into the tier, and removes it from the live sequences unless they are the tier."""
    await answer(engine, prompt)
    if tier != "live":
        async with AsyncExitStack() as stack:
            for token in range(engine.stats()["sequences"]):
                sequence = await stack.enter_async_context(engine.sequence())
                await sequence.draft([token + 100] * 8, 1)
    store = engine._store
    assert isinstance(store, LlamaCppKVCache)
    await asyncio.to_thread(store.flush)


def assert_same(restored: Draft, computed: Draft) -> None:
    pairs = zip(restored.token_ids, computed.token_ids, strict=False)
    first = next((at for at, (one, other) in enumerate(pairs) if one != other), None)
    if first is None:
        assert len(restored.token_ids) == len(computed.token_ids)
        return
    assert computed.logprobs is not None
    at = computed.logprobs[first]
    others = dict(at.top)
    assert at.logprob - others[restored.token_ids[first]] < NEAR_TIE


@pytest.mark.parametrize("unified", [False, True], ids=["own", "unified"])
@pytest.mark.parametrize("tier", TIERS)
async def test_restored_kv_gives_the_same_answer_as_computed_kv(tier: str, unified: bool, tmp_path: Path) -> None:
    async with engine_of(tier, tmp_path, kv_unified=unified) as engine:
        cold = [await answer(engine, prompt, reuse=False) for prompt in prompts(engine)]
        assert engine.stats()["reused_prompt_tokens"] == 0
        for prompt, computed in zip(prompts(engine), cold, strict=True):
            await make_known(engine, tier, prompts(engine)[0])
            before = engine.stats()
            assert_same(await answer(engine, prompt), computed)
            after = engine.stats()
            assert after[TIERS[tier]] == before[TIERS[tier]] + 1
            assert after["reused_prompt_tokens"] - before["reused_prompt_tokens"] > 150
        assert engine.stats()["kv_dropped"] == 0


@pytest.mark.parametrize("unified", [False, True], ids=["own", "unified"])
@pytest.mark.parametrize("tier", TIERS)
async def test_restored_kv_gives_the_same_answers_to_eight_concurrent_requests(
    tier: str, unified: bool, tmp_path: Path
) -> None:
    async with engine_of(tier, tmp_path, sequences=8, kv_unified=unified) as engine:
        wanted = prompts(engine) * 2
        cold = [await answer(engine, prompt, reuse=False) for prompt in prompts(engine)] * 2
        await make_known(engine, tier, wanted[0])
        before = engine.stats()
        warm = await asyncio.gather(*(answer(engine, prompt) for prompt in wanted))
        for restored, computed in zip(warm, cold, strict=True):
            assert_same(restored, computed)
        after = engine.stats()
        assert after[TIERS[tier]] > before[TIERS[tier]]
        assert after["kv_hits"] - before["kv_hits"] == 8


async def test_restored_kv_gives_the_same_answers_when_sequences_and_budgets_are_scarce(tmp_path: Path) -> None:
    source = random.Random(4)
    store = LlamaCppKVCache(max_size=6, ram_bytes=1 << 20, disk_bytes=2 << 20, directory=tmp_path)
    async with EdgeEngine(EdgeModelConfig(path=MODEL, threads=1, sequences=3), store=store) as engine:
        parts = [engine.tokenize(f"{question} {STORY[:400]}") for question in QUESTIONS]
        wanted = [sum(source.choices(parts, k=source.randint(1, 3)), [5]) for _ in range(12)]
        cold = [await answer(engine, prompt, reuse=False) for prompt in wanted]

        async def ask(at: int) -> None:
            gives_up = source.random() < 0.2
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01 if gives_up else None):
                    assert_same(await answer(engine, wanted[at], reuse=at % 6 > 0), cold[at])

        for _ in range(5):
            await asyncio.gather(*(ask(source.randrange(len(wanted))) for _ in range(8)))
        stats = engine.stats()
    assert stats["kv_live_hits"] > 0 < stats["kv_ram_hits"] + stats["kv_disk_hits"] and stats["kv_evictions"] > 0
    assert stats["kv_ram_bytes"] <= 1 << 20 and stats["kv_disk_bytes"] <= 2 << 20


LAYOUTS = {
    "f32": {"kv_type": "f32"},
    "q8_0": {"kv_type": "q8_0"},
    "flash attention": {"flash_attention": True},
    "unified": {"kv_unified": True},
    "more sequences": {"sequences": 3},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
async def test_every_kv_layout_is_restored_and_never_mistaken_for_another(
    layout: dict[str, Any], tmp_path: Path
) -> None:
    async with engine_of("disk", tmp_path, **layout) as engine:
        prompt = prompts(engine)[0]
        computed = await answer(engine, prompt)
        await make_known(engine, "disk", prompt)
        assert_same(await answer(engine, prompt), computed)
        assert engine.stats()["kv_disk_hits"] == 1
    async with engine_of("disk", tmp_path) as engine:
        await answer(engine, prompt)
        assert engine.stats()["kv_disk_hits"] == 0, "KV of one layout was loaded into another"


@pytest.mark.parametrize("unified", [False, True], ids=["own", "unified"])
async def test_another_process_restores_what_was_live_when_the_first_one_stopped(unified: bool, tmp_path: Path) -> None:
    async with engine_of("disk", tmp_path, kv_unified=unified) as first:
        computed = await answer(first, prompts(first)[0])
    async with engine_of("disk", tmp_path, kv_unified=unified) as second:
        assert_same(await answer(second, prompts(second)[0]), computed)
        assert second.stats()["kv_disk_hits"] == 1


async def test_with_reuse_off_every_prompt_is_computed(tmp_path: Path) -> None:
    async with EdgeEngine(EdgeModelConfig(path=MODEL, threads=1, sequences=2), store=AblatedKVCache()) as engine:
        for _ in range(2):
            await answer(engine, prompts(engine)[0])
        assert engine.stats()["reused_prompt_tokens"] == 0
    async with engine_of("RAM", tmp_path) as engine:
        for _ in range(2):
            await answer(engine, prompts(engine)[0], reuse=False)
        stats = engine.stats()
        assert stats["reused_prompt_tokens"] == stats["kv_ram_entries"] == 0


@pytest.mark.parametrize(
    ("kv_type", "flash_attention"), [("f16", "auto"), ("f16", True), ("f32", "auto"), ("q8_0", "auto")]
)
def test_the_portions_in_which_a_prompt_is_decoded_change_no_bit_of_its_logits(
    kv_type: Any, flash_attention: Any
) -> None:
    def last_logits(portion: int) -> bytes:
        for begin in range(0, len(PROMPT), portion):
            rows = llama.decode([SequenceTokens(0, PROMPT[begin : begin + portion], 1)])
        assert rows is not None
        read = rows[-1].tobytes()
        llama.rewind(0, 0)
        return read

    model = EdgeModelConfig(path=MODEL, context_length=256, threads=1, sequences=2, kv_type=kv_type)
    llama = Llama(replace(model, flash_attention=flash_attention))
    try:
        assert len({last_logits(portion) for portion in (200, 128, 7, 1)}) == 1
    finally:
        llama.free()


# Damage, with the real llama.cpp


@pytest.fixture
def llama() -> Iterator[Llama]:
    loaded = Llama(EdgeModelConfig(path=MODEL, context_length=64, threads=1, sequences=2))
    yield loaded
    loaded.free()


class OneSnapshot:
    """A cache with one snapshot, of 20 tokens, and the model's greedy answer after them."""

    def __init__(self, llama: Llama) -> None:
        self.llama, self.cache = llama, LlamaCppKVCache()
        self.tokens = [300 + at for at in range(20)]
        self.answer = self.computed(0)
        self.cache.save(llama, 0)
        self.cache.flush()
        llama.rewind(0, 0)
        (entry,) = self.cache._store._index._entries
        assert entry.data
        self.sealed = entry.data

    def computed(self, held: int) -> list[int]:
        """The greedy answer, computed after the first `held` tokens that sequence 0 holds already."""
        drawn, pending = [], self.tokens[held:]
        for _ in range(4):
            rows = self.llama.decode([SequenceTokens(0, pending, 1)])
            assert rows is not None
            drawn.append(int(rows[0].argmax()))
            pending = [drawn[-1]]
        self.llama.rewind(0, len(self.tokens))
        return drawn

    def restored(self, data: bytes) -> int:
        """How many tokens are restored if the snapshot is `data`."""
        store = self.cache._store
        store._index.clear()
        entry = SnapshotEntry(self.tokens, b"")
        store._index.insert(entry)
        store._place(entry, data, data)
        self.llama.rewind(0, 0)
        return self.cache.restore(self.llama, 0, self.tokens[:-1])


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def test_a_snapshot_truncated_at_any_byte_is_never_loaded(llama: Llama, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR")
    one = OneSnapshot(llama)
    assert one.restored(one.sealed) == 19
    assert [length for length in range(len(one.sealed)) if one.restored(one.sealed[:length])] == []
    assert one.computed(one.restored(one.sealed)) == one.answer


def test_a_thousand_flipped_bits_neither_crash_nor_answer_wrongly(
    llama: Llama, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("ERROR")
    one, source = OneSnapshot(llama), random.Random(2)
    for _ in range(1000):
        held = one.restored(flipped(one.sealed, source.randrange(8 * len(one.sealed))))
        assert held == 0
        assert one.computed(held) == one.answer
    assert one.cache.stats()["dropped"] == 1000


def test_without_the_check_llama_cpp_would_load_a_flipped_bit(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    one = OneSnapshot(llama)
    monkeypatch.setattr(snapshot_format, "_is_genuine", lambda key, whole: True)
    assert one.restored(flipped(one.sealed, 8 * (len(one.sealed) - 100))) == 19
