"""Many requests in one engine: continuous batching, streams, cancellation, limits, prefix stores, draft sessions."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from common.config_edge import EdgeModelConfig, LimitsConfig
from common.errors import ContextLengthError, NotFoundError, OverloadedError
from common.types import GREEDY, Sampling, StopRule, Verdict
from edge.draft_generator import DraftManager
from edge.engine.engine import EdgeEngine
from edge.kv.prefix_store import LiveSequences
from edge.llama.batch import SequenceTokens
from edge.llama.model import CHUNK, Llama

MODEL = "models/demo-edge.gguf"
QUESTIONS = (
    "What is AI?",
    "What is the capital of France?",
    "What is machine learning?",
    "Explain quantum computing",
    "Explain deep learning",
    "What is artificial intelligence?",
    "What is a neural network?",
    "What is the capital of Italy?",
)
LENGTH = 24
ONE_SEQUENCE = EdgeModelConfig(path=MODEL, context_length=256, threads=1, sequences=1)
HOT = Sampling(temperature=1.5, top_p=0.95, min_p=0.01, frequency_penalty=0.3, seed=7)


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[EdgeEngine]:
    async with EdgeEngine(EdgeModelConfig(path=MODEL, threads=1, sequences=8)) as running:
        yield running


def ask(engine: EdgeEngine, question: str) -> list[int]:
    return engine.tokenize(f"<|user|>{question}<|assistant|>", parse_special=True)


async def answer(
    engine: EdgeEngine, prompt: list[int], sampling: Sampling = GREEDY, limit: int = LENGTH, reuse: bool = True
) -> list[int]:
    async with engine.sequence(prompt, reuse) as sequence:
        return (await sequence.draft(prompt, limit, sampling)).token_ids


async def counted(engine: EdgeEngine, name: str, work: Any) -> int:
    """By how much `work` increases one of the engine's counters."""
    before = engine.stats()[name]
    await work
    return engine.stats()[name] - before


def llama_of(engine: EdgeEngine) -> Llama:
    assert engine._llama is not None
    return engine._llama


@pytest.mark.parametrize("kv_unified", [False, True], ids=["own", "unified"])
@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "seeded"])
async def test_an_answer_alone_is_the_answer_among_eight(sampling: Sampling, kv_unified: bool) -> None:
    """Other requests come and go, and the prompt's prefix is found in different places."""
    source = random.Random(4)

    async def strangers(engine: EdgeEngine) -> None:
        while True:
            text = [source.randrange(10, 4000) for _ in range(source.randrange(1, 300))]
            await answer(engine, text, HOT, limit=source.randrange(1, 40), reuse=source.random() < 0.5)

    model = EdgeModelConfig(path=MODEL, threads=1, sequences=8, kv_unified=kv_unified)
    async with EdgeEngine(model) as engine:
        prompts = [ask(engine, question) for question in QUESTIONS]
        alone = [await answer(engine, prompt, sampling, reuse=False) for prompt in prompts]
        others = [asyncio.create_task(strangers(engine)) for _ in range(3)]
        for reuse in (False, True, True):
            together = await asyncio.gather(*(answer(engine, prompt, sampling, reuse=reuse) for prompt in prompts))
            assert together == alone
        for task in others:
            task.cancel()
        await asyncio.wait(others)


@pytest.mark.parametrize("kv_unified", [False, True], ids=["own", "unified"])
def test_a_copy_is_complete_whatever_happens_to_its_source(kv_unified: bool) -> None:
    """llama.cpp fills the cells of a copy only when it decodes next."""
    llama = Llama(EdgeModelConfig(path=MODEL, context_length=256, threads=1, kv_unified=kv_unified))
    try:
        one, other = [5, 6, 7, 8, 9], [50, 60, 70]
        llama.decode([SequenceTokens(0, one, 1), SequenceTokens(1, other, 1)])
        of_other = llama.snapshot(1)
        llama.copy(0, 2, 4)
        assert llama.load_snapshot(0, of_other, other)
        llama.copy(2, 3, 3)
        of_copy = llama.snapshot(3)
        llama.copy(0, 3, 3)
        assert llama.load_snapshot(1, of_copy, one[:3])
        rows = llama.decode(
            [
                SequenceTokens(0, [1], 1),
                SequenceTokens(1, [8, 1], 1),
                SequenceTokens(2, [1], 1),
                SequenceTokens(3, [1], 1),
            ]
        )
        assert rows is not None
        found = rows.copy()
        for sequence in range(4):
            llama.rewind(sequence, 0)
        for row, text in zip(found, (other, one[:4], one[:4], other), strict=True):
            llama.rewind(0, 0)
            expected = llama.decode([SequenceTokens(0, [*text, 1], 1)])
            assert expected is not None
            assert row == pytest.approx(expected[0], abs=0.05)
            assert row.argmax() == expected[0].argmax()
    finally:
        llama.free()


async def test_one_step_serves_all_drawing_requests(engine: EdgeEngine) -> None:
    prompts = [ask(engine, question) for question in QUESTIONS]
    steps = await counted(engine, "steps", asyncio.gather(*(answer(engine, prompt, HOT) for prompt in prompts)))
    assert steps <= LENGTH + 2 * len(prompts)  # they join one after the other, each with a prompt to decode


async def test_a_long_prompt_is_decoded_beside_drawing_requests(engine: EdgeEngine) -> None:
    prompt, long = ask(engine, "What is AI?"), [5] * (3 * CHUNK)
    expected = await answer(engine, prompt)
    steps = await counted(engine, "steps", asyncio.gather(answer(engine, prompt), answer(engine, long, limit=1)))
    assert steps <= LENGTH + 2
    assert await answer(engine, prompt, reuse=False) == expected


async def test_rejected_tokens_are_never_computed_again(engine: EdgeEngine) -> None:
    prompt, other = ask(engine, "What is AI?"), engine.tokenize(" other")[0]
    async with engine.sequence(prompt) as sequence:
        first = await sequence.draft(prompt, 8)
        known = [*prompt, *first.token_ids[:3], other]
        decoded = await counted(engine, "decoded_tokens", sequence.draft(known, 8))
    assert decoded == 1 + 7  # the new token, then each drawn token but the last


async def test_a_draft_ends_when_the_product_of_confidences_is_too_low(engine: EdgeEngine) -> None:
    prompt = ask(engine, "Explain quantum computing")
    async with engine.sequence(prompt) as sequence:
        whole = await sequence.draft(prompt, LENGTH, HOT)
        products = np.cumprod(whole.confidences)
        for bound in (products[0] * 1.01, products[4] * 1.01, products[-1] / 2):
            kept = int(np.argmax(products < bound)) + 1 if (products < bound).any() else LENGTH
            draft = await sequence.draft(prompt, LENGTH, HOT, stop=StopRule(float(bound)))
            assert draft.token_ids == whole.token_ids[:kept]


async def test_a_stream_is_the_draft_in_parts(engine: EdgeEngine) -> None:
    prompt = ask(engine, "What is AI?")
    expected = await answer(engine, prompt, limit=100)
    async with engine.sequence(prompt) as sequence:
        parts = [part async for part in sequence.generate(prompt, 100)]
    assert [token for part in parts for token in part.token_ids] == expected
    assert all(len(part.token_ids) == len(part.probs) == len(part.confidences) > 0 for part in parts)
    assert [part.finished for part in parts] == [False] * (len(parts) - 1) + [True]


async def test_a_stream_does_not_wait_for_its_reader(engine: EdgeEngine) -> None:
    prompt = ask(engine, "Explain quantum computing")
    async with engine.sequence(prompt) as sequence, aclosing(sequence.generate(prompt, 200, HOT)) as parts:
        await anext(parts)
        while engine.stats()["drafts"] == 0:  # drawn to the end although nobody reads
            await asyncio.sleep(0.01)
        rest = [part async for part in parts]
    assert len(rest) == 1


async def test_closing_a_stream_stops_it_within_a_step(engine: EdgeEngine) -> None:
    prompt = ask(engine, "Explain quantum computing")
    async with engine.sequence(prompt) as sequence:
        async with aclosing(sequence.generate(prompt, 900, Sampling(3.0, seed=1))) as parts:
            await anext(parts)
        await asyncio.sleep(0)
        steps = engine.stats()["steps"]
        await asyncio.sleep(0.2)
        assert engine.stats()["steps"] <= steps + 1 < 900


async def test_scores_are_the_probabilities_that_drafting_sees(engine: EdgeEngine) -> None:
    prompt = ask(engine, "What is AI?")
    async with engine.sequence(prompt) as sequence:
        draft = await sequence.draft(prompt, LENGTH, top_logprobs=4)
        text = prompt + draft.token_ids
        scores = await sequence.score(text, 4)
        assert await sequence.score(text[:1]) == [None]
    assert scores[0] is None
    assert len(scores) == len(text)
    assert draft.logprobs is not None
    drawn = [score for score in scores[len(prompt) :] if score]
    assert [s.token_id for s in drawn] == draft.token_ids
    assert [s.logprob for s in drawn] == pytest.approx([t.logprob for t in draft.logprobs], abs=1e-2)
    assert np.exp([t.logprob for t in draft.logprobs]) == pytest.approx(draft.probs, rel=1e-4)
    for score in draft.logprobs:
        assert score.top[0] == (score.token_id, score.logprob)
        assert [p for _, p in score.top] == sorted((p for _, p in score.top), reverse=True)
        assert len(score.top) == 4


async def test_a_long_text_is_scored_in_portions(engine: EdgeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    text = [5, 9, 13] * 40
    async with engine.sequence() as sequence:
        whole = await sequence.score(text, 1)
        monkeypatch.setattr("edge.engine.scheduler.MAX_SCORING_LOGITS", 7 * engine.vocab_size)
        steps = await counted(engine, "steps", sequence.score(text, 1))
        portions = await sequence.score(text, 1)
    assert steps == -(-(len(text) - 1) // 7)
    assert [s.logprob for s in portions if s] == pytest.approx([s.logprob for s in whole if s], abs=1e-2)


def test_an_aborted_step_leaves_every_sequence_as_it_was() -> None:
    llama = Llama(EdgeModelConfig(path=MODEL, threads=1, sequences=2))
    try:
        llama.decode([SequenceTokens(0, [5, 6, 7], 1)])
        expected = llama.decode([SequenceTokens(0, [8], 1)])
        assert expected is not None
        expected = expected.copy()
        llama.rewind(0, 3)
        llama.abort(True)
        assert llama.decode([SequenceTokens(0, [8], 1), SequenceTokens(1, [9] * 200, 1)]) is None
        assert llama.held == [[5, 6, 7], []]
        llama.abort(False)
        again = llama.decode([SequenceTokens(0, [8], 1)])
        assert again is not None
        assert (again == expected).all()
    finally:
        llama.free()


class DecodeGate:
    """Blocks the engine's thread before each decode until `go` is set."""

    def __init__(self, engine: EdgeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        self.outcomes: list[bool] = []
        """For each decode since, whether it was completed."""
        decode = llama_of(engine).decode

        def held(pieces: Sequence[SequenceTokens]) -> Any:
            self.entered.set()
            self.go.wait()
            rows = decode(pieces)
            self.outcomes.append(rows is not None)
            return rows

        monkeypatch.setattr(llama_of(engine), "decode", held)


@pytest.mark.parametrize("protected", [True, False], ids=["abort", "control"])
async def test_a_cancelled_prefill_is_aborted(
    engine: EdgeEngine, monkeypatch: pytest.MonkeyPatch, protected: bool
) -> None:
    prompt = ask(engine, "What is AI?")
    expected = await answer(engine, prompt)
    gate = DecodeGate(engine, monkeypatch)
    if not protected:
        monkeypatch.setattr("edge.engine.worker.StepScheduler.abort_unwanted_step", lambda self: None)
    left = asyncio.create_task(answer(engine, [5] * (3 * CHUNK)))
    await asyncio.to_thread(gate.entered.wait)
    left.cancel()
    await asyncio.wait([left])
    gate.go.set()
    assert await answer(engine, prompt) == expected
    assert gate.outcomes[0] is not protected
    assert engine.stats()["sequences_lent"] == 0


async def test_a_step_that_other_requests_need_goes_on(engine: EdgeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = ask(engine, "What is AI?")
    expected = await answer(engine, prompt)
    gate = DecodeGate(engine, monkeypatch)
    stays = asyncio.create_task(answer(engine, prompt))
    await asyncio.to_thread(gate.entered.wait)
    left = asyncio.create_task(answer(engine, [5] * (3 * CHUNK)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    left.cancel()
    gate.go.set()
    assert await stays == expected
    assert all(gate.outcomes)


async def test_a_late_abort_changes_no_answer(engine: EdgeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = ask(engine, "What is AI?")
    expected = await answer(engine, prompt)
    llama, decode = llama_of(engine), llama_of(engine).decode
    source = random.Random(3)

    def disturbed(pieces: Sequence[SequenceTokens]) -> Any:
        llama.abort(source.random() < 0.5)
        return decode(pieces)

    monkeypatch.setattr(llama, "decode", disturbed)
    assert await asyncio.gather(*(answer(engine, prompt, reuse=False) for _ in range(4))) == [expected] * 4


async def test_requests_cancelled_at_random_leave_nothing_behind(engine: EdgeEngine) -> None:
    source = random.Random(5)
    prompt = ask(engine, "What is AI?")
    expected = await answer(engine, prompt)

    async def visit() -> None:
        async with engine.sequence() as sequence:
            text = [source.randrange(10, 4000) for _ in range(source.randrange(1, 600))]
            async with aclosing(sequence.generate(text, 300, HOT)) as parts:
                async for _ in parts:
                    pass

    visits = [asyncio.create_task(visit()) for _ in range(60)]
    for task in visits:
        await asyncio.sleep(source.random() * 0.01)
        task.cancel()
    await asyncio.wait(visits)
    assert [engine.stats()[name] for name in ("sequences_lent", "waiting", "prompt_tokens_now")] == [0, 0, 0]
    assert await answer(engine, prompt) == expected


async def limited(limits: LimitsConfig, check: Callable[[EdgeEngine], Any]) -> None:
    async with EdgeEngine(ONE_SEQUENCE, limits=limits) as engine:
        await check(engine)
        assert engine.stats()["waiting"] == engine.stats()["prompt_tokens_now"] == 0
        assert len(await answer(engine, [5], HOT, limit=2)) == 2


async def test_a_request_is_refused_when_the_queue_is_full() -> None:
    async def check(engine: EdgeEngine) -> None:
        async with engine.sequence([5]):
            waiting = asyncio.create_task(answer(engine, [5], limit=1))
            await asyncio.sleep(0)
            with pytest.raises(OverloadedError):
                await answer(engine, [5], limit=1)
        assert len(await waiting) == 1

    await limited(LimitsConfig(max_queue=1), check)


async def test_a_request_is_refused_when_too_many_tokens_are_in_progress() -> None:
    async def check(engine: EdgeEngine) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(engine.sequence([5] * 60))
            with pytest.raises(OverloadedError):
                await answer(engine, [5] * 41)
        assert len(await answer(engine, [5] * 41, limit=1)) == 1

    await limited(LimitsConfig(max_tokens_total=100), check)


async def test_a_request_has_at_most_the_tokens_that_the_limit_allows() -> None:
    async def check(engine: EdgeEngine) -> None:
        assert engine.context_length == 40
        assert len(await answer(engine, [5] * 38, HOT)) == 2
        with pytest.raises(ContextLengthError):
            await answer(engine, [5] * 41)

    await limited(LimitsConfig(max_tokens_request=40), check)


class RecordingStore(LiveSequences):
    """A prefix store that records the calls and their threads."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.threads: set[str] = set()

    def _record(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.current_thread().name)

    def restore(self, llama: Llama, sequence: int, token_ids: Sequence[int], tenant: str = "") -> int:
        self._record(f"restore {len(token_ids)}")
        return super().restore(llama, sequence, token_ids, tenant)

    def release(self, llama: Llama, sequence: int) -> None:
        self._record(f"release {len(llama.held[sequence])}")

    def save(self, llama: Llama, sequence: int) -> None:
        self._record(f"save {len(llama.held[sequence])}")

    def close(self, llama: Llama) -> None:
        self._record("close")


async def test_a_prefix_store_is_called_once_per_lease_in_the_engines_thread() -> None:
    store = RecordingStore()
    async with EdgeEngine(ONE_SEQUENCE, store=store) as engine:
        prompt = [5, 6, 7, 8]
        async with engine.sequence(prompt) as sequence:
            first = await sequence.draft(prompt, 3, HOT)
            await sequence.draft(prompt + first.token_ids[:1], 2, HOT)
        async with engine.sequence():
            pass  # a lease without a job: the store is not called
        await answer(engine, prompt, limit=1, reuse=False)
        await answer(engine, prompt, limit=1)
    assert store.calls == ["restore 3", "release 6", "save 6", "restore 3", "release 4", "close"]
    assert store.threads == {"edge-engine"}


class FaultyStore(LiveSequences):
    """A prefix store that fails when a lease or the engine ends."""

    def release(self, llama: Llama, sequence: int) -> None:
        raise OSError("no space left")

    def close(self, llama: Llama) -> None:
        raise OSError("no space left")


async def test_a_prefix_store_that_fails_does_not_end_the_engine() -> None:
    async with EdgeEngine(ONE_SEQUENCE, store=FaultyStore()) as engine:
        assert len(await answer(engine, [5], HOT, limit=2)) == len(await answer(engine, [6], HOT, limit=2)) == 2


async def test_sessions_follow_their_verdicts(engine: EdgeEngine) -> None:
    manager = DraftManager(engine, max_sessions=len(QUESTIONS))
    truth = {}
    for question in QUESTIONS:
        prompt = ask(engine, question)
        truth[question] = prompt + await answer(engine, prompt, HOT)
        manager.begin(question, prompt)

    async def follow(question: str, wrong: int) -> list[int]:
        settled = ask(engine, question)
        while len(settled) < len(truth[question]):
            ahead = truth[question][len(settled) :]
            draft = (await manager.draft(question, 4, HOT)).token_ids[: len(ahead)]
            accepted = next((i for i, (d, t) in enumerate(zip(draft, ahead, strict=False)) if d != t), len(draft))
            accepted = min(accepted, wrong)
            settled = manager.settle(question, Verdict(ahead[: accepted + 1], accepted, None, 0.0))
        return settled

    settled = await asyncio.gather(*(follow(question, at % 5) for at, question in enumerate(QUESTIONS)))
    assert settled == list(truth.values())
    for question in QUESTIONS[1:]:
        await manager.draft(question, 1)
    manager.begin("one more", [5])
    with pytest.raises(NotFoundError):
        await manager.draft(QUESTIONS[0], 4)
    manager.end("one more")
    with pytest.raises(NotFoundError):
        manager.settle("one more", Verdict([5], 0, None, 0.0))


async def test_a_session_drafts_on_while_a_verdict_is_awaited(engine: EdgeEngine) -> None:
    manager = DraftManager(engine)
    prompt = ask(engine, "What is AI?")
    expected = await answer(engine, prompt, limit=12)
    manager.begin("s", prompt)
    drafts = [(await manager.draft("s", 4)).token_ids for _ in range(2)]
    assert drafts == [expected[:4], expected[4:8]]
    assert manager.settle("s", Verdict(expected[:5], 4, None, 0.0)) == prompt + expected[:5]
    decoded = await counted(engine, "decoded_tokens", manager.draft("s", 4))
    assert decoded == 4  # the five settled tokens equal the drafted ones, so nothing is computed again
    assert manager.settle("s", Verdict(expected[5:12], 6, None, 0.0)) == prompt + expected[:12]
