"""The edge engine on the demo model: drafts, reuse of KV, cancellation, start and stop."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
import pytest_asyncio

from common.config_edge import EdgeModelConfig
from common.errors import ContextLengthError, EngineError, RequestError, StartError
from common.types import GREEDY, DraftRequest, Sampling
from edge.confidence import ConfidenceCalculator, ConfidenceStrategy
from edge.draft_generator import DraftGenerator
from edge.engine.engine import EdgeEngine
from edge.engine.jobs import EngineJob
from edge.engine.worker import StepScheduler
from edge.llama.batch import SequenceTokens
from edge.llama.model import CHUNK, Llama
from edge.llama.sampling import Logits
from tests.support.manual_clock import ManualClock

MODEL = "models/demo-edge.gguf"
QUESTIONS = (
    "What is AI?",
    "What is the capital of France?",
    "What is machine learning?",
    "What is artificial intelligence?",
)
LENGTH = 24
SHORT = EdgeModelConfig(path=MODEL, context_length=256, threads=1)
HOT = Sampling(temperature=1.5, top_p=0.95, seed=7)


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[EdgeEngine]:
    async with EdgeEngine(EdgeModelConfig(path=MODEL, threads=1)) as running:
        yield running


def ask(engine: EdgeEngine, question: str) -> list[int]:
    return engine.tokenize(f"<|user|>{question}<|assistant|>", parse_special=True)


async def answer(
    engine: EdgeEngine, prompt: list[int], pieces: list[int], sampling: Sampling = GREEDY, reuse: bool = True
) -> list[int]:
    """The tokens drafted after `prompt`, in drafts of the lengths in `pieces`."""
    tokens: list[int] = []
    async with engine.sequence(prompt, reuse) as sequence:
        for limit in pieces:
            draft = await sequence.draft(prompt + tokens, limit, sampling)
            assert len(draft.token_ids) == len(draft.probs) == len(draft.confidences) <= limit
            tokens += draft.token_ids
            if draft.finished:
                break
    return tokens


def cuts(total: int, source: random.Random) -> list[int]:
    pieces: list[int] = []
    while sum(pieces) < total:
        pieces.append(source.randint(1, min(7, total - sum(pieces))))
    return pieces


@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "seeded"])
@pytest.mark.parametrize("reuse", [True, False], ids=["kv", "no-kv"])
async def test_an_answer_does_not_depend_on_how_it_is_cut_into_drafts(
    engine: EdgeEngine, sampling: Sampling, reuse: bool
) -> None:
    source = random.Random(1)
    for question in QUESTIONS:
        prompt = ask(engine, question)
        whole = await answer(engine, prompt, [LENGTH], sampling)
        assert await answer(engine, prompt, cuts(LENGTH, source), sampling, reuse) == whole


async def test_another_seed_draws_other_tokens(engine: EdgeEngine) -> None:
    prompt = ask(engine, "Explain quantum computing")
    drawn = [await answer(engine, prompt, [LENGTH], Sampling(1.5, seed=seed)) for seed in (1, 2, -3)]
    assert len({tuple(tokens) for tokens in drawn}) == len(drawn)


async def test_without_a_seed_every_draft_is_a_new_one(engine: EdgeEngine) -> None:
    prompt = ask(engine, "Explain quantum computing")
    assert len({tuple(await answer(engine, prompt, [LENGTH], Sampling(1.5))) for _ in range(3)}) == 3


async def test_rejected_tokens_leave_no_trace(engine: EdgeEngine) -> None:
    prompt = ask(engine, "What is AI?")
    wrong = engine.tokenize(" something else entirely, of another length")
    async with engine.sequence(prompt) as sequence:
        before = await sequence.draft(prompt, LENGTH, GREEDY)
        other = await sequence.draft(prompt + wrong, 5, GREEDY)
        after = await sequence.draft(prompt, LENGTH, GREEDY)
    assert after.token_ids == before.token_ids != other.token_ids


async def test_sequences_used_in_turns_draft_what_each_drafts_alone(engine: EdgeEngine) -> None:
    prompts = [ask(engine, question) for question in QUESTIONS]
    alone = [await answer(engine, prompt, [LENGTH], HOT, reuse=False) for prompt in prompts]
    together = await asyncio.gather(*(answer(engine, prompt, [5] * 5, HOT, reuse=False) for prompt in prompts))
    assert [tokens[:LENGTH] for tokens in together] == alone


async def test_a_short_draft_does_not_wait_for_the_end_of_a_long_one(engine: EdgeEngine) -> None:
    ended: list[str] = []

    async def timed(name: str, prompt: list[int], limit: int) -> None:
        async with engine.sequence() as sequence:
            await sequence.draft(prompt, limit, HOT)
        ended.append(name)

    await asyncio.gather(timed("long", [5] * (3 * CHUNK), 200), timed("short", [5], 1))
    assert ended == ["short", "long"]


async def test_more_owners_than_sequences_wait_for_their_turn(engine: EdgeEngine) -> None:
    prompt = ask(engine, "What is AI?")
    one = await answer(engine, prompt, [8])
    assert await asyncio.gather(*(answer(engine, prompt, [8]) for _ in range(10))) == [one] * 10
    assert engine.stats()["sequences_lent"] == 0


async def test_prompt_tokens_are_reused_only_if_reuse_is_on(engine: EdgeEngine) -> None:
    prompt = ask(engine, "What is AI?")

    async def reused(reuse: bool) -> int:
        before = engine.stats()["reused_prompt_tokens"]
        await answer(engine, prompt, [4, 4], reuse=reuse)
        return engine.stats()["reused_prompt_tokens"] - before

    assert await reused(True) == len(prompt) + 3
    assert await reused(False) == 0
    assert await reused(True) == (len(prompt) - 1) + (len(prompt) + 3)


async def test_a_prefix_is_shared_with_a_sequence_in_use(engine: EdgeEngine) -> None:
    shared = engine.tokenize("<|user|>Explain deep learning and quantum computing, ", parse_special=True)
    one, other = (shared + ask(engine, question)[1:] for question in QUESTIONS[:2])
    alone = await answer(engine, other, [LENGTH], reuse=False)
    async with engine.sequence(one) as busy:
        started = (await busy.draft(one, 4, GREEDY)).token_ids
        before = engine.stats()["reused_prompt_tokens"]
        assert await answer(engine, other, [LENGTH]) == alone
        assert engine.stats()["reused_prompt_tokens"] - before >= len(shared)
        going_on = (await busy.draft(one + started, 8, GREEDY)).token_ids
    assert started + going_on == await answer(engine, one, [12], reuse=False)


async def test_a_lease_prefers_the_sequence_that_holds_the_prompt(engine: EdgeEngine) -> None:
    for question in QUESTIONS:
        await answer(engine, ask(engine, question), [4])
    prompt = ask(engine, QUESTIONS[1])
    before = engine.stats()["reused_prompt_tokens"]
    await answer(engine, prompt, [4])
    assert engine.stats()["reused_prompt_tokens"] - before == len(prompt) - 1


async def test_an_end_token_is_included_and_finishes(engine: EdgeEngine) -> None:
    async with engine.sequence() as sequence:
        draft = await sequence.draft(ask(engine, "What is the capital of France?"), 100, GREEDY)
    assert draft.finished
    assert [token in engine.end_tokens for token in draft.token_ids] == [False] * (len(draft.token_ids) - 1) + [True]


async def test_a_full_context_ends_a_draft_and_a_longer_prompt_is_refused(engine: EdgeEngine) -> None:
    token = engine.tokenize(" the")[0]
    async with engine.sequence() as sequence:
        almost = await sequence.draft([token] * (engine.context_length - 2), 100, Sampling(5.0, seed=1))
        assert len(almost.token_ids) == 2
        assert (await sequence.draft([token] * engine.context_length, 100, GREEDY)).token_ids == []
        with pytest.raises(ContextLengthError):
            await sequence.draft([token] * (engine.context_length + 1), 1, GREEDY)


async def test_every_sequence_can_fill_its_context(engine: EdgeEngine) -> None:
    prompt = [engine.tokenize(" the")[0]] * (engine.context_length - 1)
    drafts = await asyncio.gather(*(answer(engine, prompt, [1]) for _ in range(engine.stats()["sequences"])))
    assert all(len(tokens) == 1 for tokens in drafts)


async def test_a_cancelled_draft_stops_and_the_engine_goes_on(engine: EdgeEngine) -> None:
    prompt = ask(engine, "What is AI?")
    expected = await answer(engine, prompt, [LENGTH])
    drafts = engine.stats()["drafts"]
    for _ in range(5):
        slow = asyncio.create_task(answer(engine, [5] * (3 * CHUNK), [200], HOT))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert await answer(engine, prompt, [LENGTH]) == expected
    assert engine.stats()["drafts"] == drafts + 5
    assert engine.stats()["sequences_lent"] == 0


async def test_the_event_loop_runs_while_the_model_computes(engine: EdgeEngine) -> None:
    ticks = 0
    prompt = [5] * (engine.context_length - 1)
    work = asyncio.create_task(answer(engine, prompt, [1]))
    while not work.done():
        await asyncio.sleep(0)
        ticks += 1
    assert len(await work) == 1
    assert ticks > len(prompt) // CHUNK


async def test_a_failed_decode_fails_its_draft_alone(engine: EdgeEngine) -> None:
    prompt = ask(engine, "What is AI?")
    async with engine.sequence() as sequence:
        before = await sequence.draft(prompt, 8, GREEDY)
        with pytest.raises(EngineError):
            await sequence.draft([engine.vocab_size + 1], 8, GREEDY)
        assert (await sequence.draft(prompt, 8, GREEDY)).token_ids == before.token_ids


async def test_probabilities_and_confidences_are_those_of_the_unmodified_distribution() -> None:
    calculator = ConfidenceCalculator(ConfidenceStrategy.ENTROPY)
    rows: list[np.ndarray] = []

    def spy(logits: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows.extend(logits.copy())
        return calculator.of_batch(logits, chosen)

    async with (
        EdgeEngine(SHORT, confidence=spy) as engine,
        engine.sequence() as sequence,
    ):
        draft = await sequence.draft(ask(engine, "What is AI?"), LENGTH, Sampling(1.2, top_k=4, seed=3))
    logits = np.stack(rows).astype(np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    assert draft.probs == pytest.approx(softmax[np.arange(len(rows)), draft.token_ids].tolist(), rel=1e-4)
    assert draft.confidences == pytest.approx(calculator.of_logits(logits).tolist(), abs=1e-4)


async def test_first_tokens_of_many_seeds_follow_the_softmax(engine: EdgeEngine) -> None:
    prompt = ask(engine, "Explain deep learning")
    draws = 1500
    counts: dict[int, int] = {}
    probs: dict[int, float] = {}
    async with engine.sequence(prompt) as sequence:
        for seed in range(draws):
            draft = await sequence.draft(prompt, 1, Sampling(1.0, seed=seed))
            counts[draft.token_ids[0]] = counts.get(draft.token_ids[0], 0) + 1
            probs[draft.token_ids[0]] = draft.probs[0]
    for token, prob in probs.items():
        four_sigma = 4 * (prob * (1 - prob) / draws) ** 0.5
        assert abs(counts[token] / draws - prob) < four_sigma + 2 / draws
    assert len(counts) > 1


async def test_tokenizing_and_detokenizing_gives_the_text_back(engine: EdgeEngine) -> None:
    for text in ("What is AI?", " 12 + 34 = 46\n\ttabs", "naïve café, 日本語, 🙂", "<|user|> spelled out", ""):
        assert engine.detokenize(engine.tokenize(text)) == text


async def test_special_tokens_are_parsed_and_shown_only_on_request(engine: EdgeEngine) -> None:
    [end] = engine.end_tokens
    assert engine.tokenize(engine.eos, parse_special=True) == [end]
    assert len(engine.tokenize(engine.eos)) > 1
    assert (engine.piece(end), engine.piece(end, special=True)) == (b"", engine.eos.encode())


async def test_the_model_describes_itself(engine: EdgeEngine) -> None:
    assert engine.model_name == "demo-edge"
    assert "<|assistant|>" in (engine.chat_template or "")
    assert engine.bos == ""
    assert engine.vocab_size == 4096


@pytest.mark.parametrize("content", [None, b"", b"version https://git-lfs.github.com/spec/v1\n", b"GGUF" + bytes(64)])
async def test_a_model_that_cannot_be_loaded_is_named_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    threads = threading.enumerate()
    with pytest.raises(StartError) as failure:
        await EdgeEngine(EdgeModelConfig(path=str(path))).start()
    assert str(path) in failure.value.message
    assert "\n" not in failure.value.message
    assert threading.enumerate() == threads


async def test_closing_ends_the_thread_and_fails_waiting_requests() -> None:
    threads = threading.enumerate()
    engine = EdgeEngine(EdgeModelConfig(path=MODEL, threads=1))
    await engine.start()
    assert engine.alive
    waiting = [asyncio.create_task(answer(engine, [5] * 900, [100], HOT)) for _ in range(6)]
    await asyncio.sleep(0)
    assert engine.stats()["sequences_lent"] == 4
    await engine.close()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, EngineError) for result in results)
    assert not engine.alive
    assert threading.enumerate() == threads
    with pytest.raises(EngineError):
        engine.tokenize("anything")
    await engine.close()


async def test_an_engine_stuck_in_a_step_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, let_go = threading.Event(), threading.Event()

    def stuck(logits: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        entered.set()
        let_go.wait()
        return ConfidenceCalculator().of_batch(logits, chosen)

    async with EdgeEngine(SHORT, confidence=stuck) as engine:
        draft = asyncio.create_task(answer(engine, [5], [1]))
        await asyncio.to_thread(entered.wait)
        assert engine.alive
        monkeypatch.setattr("edge.engine.worker.STUCK_AFTER_S", -2.0)
        assert not engine.alive
        let_go.set()
        await draft


class Unhurried(StepScheduler[EngineJob]):
    """Has one step, which another thread asks about."""

    def _step(self) -> None:
        raise NotImplementedError

    _receive = abort = free = _step  # type: ignore[assignment]


@pytest.mark.parametrize(("tokens", "seconds"), [(1, 31), (16, 46), (256, 286)])
def test_a_step_may_take_a_second_for_each_of_its_tokens_and_half_a_minute_more(
    tokens: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock(1000.0)
    monkeypatch.setattr("edge.engine.worker.time.monotonic", clock)
    scheduler = Unhurried(SimpleQueue(), lambda _: None)
    assert not scheduler.stuck
    scheduler.step_began_at, scheduler.step_tokens = clock.now, tokens
    clock.now += seconds - 0.1
    assert not scheduler.stuck
    clock.now += 0.2
    assert scheduler.stuck


async def test_a_running_step_says_how_many_tokens_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    async with EdgeEngine(SHORT) as engine:
        scheduler, seen = engine._thread.scheduler, list[int]()
        assert scheduler is not None
        decode = Llama.decode

        def recorded(llama: Llama, pieces: Sequence[SequenceTokens]) -> Logits | None:
            seen.append(scheduler.step_tokens)
            return decode(llama, pieces)

        monkeypatch.setattr(Llama, "decode", recorded)
        await answer(engine, [5] * 40, [2])
    assert seen == [40, 1]


async def test_a_start_that_is_cancelled_leaves_nothing_running() -> None:
    threads = threading.enumerate()
    start = asyncio.create_task(EdgeEngine(EdgeModelConfig(path=MODEL, threads=1)).start())
    await asyncio.sleep(0)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert threading.enumerate() == threads


async def test_a_generator_answers_with_one_entry_for_each_token(engine: EdgeEngine) -> None:
    prompt = "<|user|>What is AI?<|assistant|>"
    response = await DraftGenerator(engine).generate_draft(DraftRequest(prompt=prompt, max_tokens=10))
    assert response.draft_token_ids == await answer(engine, ask(engine, "What is AI?"), [10])
    assert [t.token_id for t in response.token_probs] == response.draft_token_ids
    assert [t.token for t in response.token_probs] == response.draft_tokens
    assert "".join(response.draft_tokens) == engine.detokenize(response.draft_token_ids)
    assert [np.exp(t.logprob) for t in response.token_probs] == pytest.approx([t.prob for t in response.token_probs])
    assert response.prompt_tokens == len(ask(engine, "What is AI?"))


async def test_a_generator_given_a_path_loads_its_own_engine() -> None:
    threads = engine_threads()
    generator = DraftGenerator(MODEL)
    requests = [DraftRequest(prompt="<|user|>What is AI?<|assistant|>", max_tokens=4) for _ in range(3)]
    responses = await asyncio.gather(*map(generator.generate_draft, requests))
    await generator.close()
    assert {len(response.draft_tokens) for response in responses} == {4}
    assert engine_threads() == threads


def engine_threads() -> list[threading.Thread]:
    """All threads but those of the event loop's executor, which come and stay as they are needed."""
    return [thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")]


async def test_a_request_that_gives_up_does_not_stop_the_load_for_others() -> None:
    generator = DraftGenerator(MODEL)
    request = DraftRequest(prompt="What is AI?", max_tokens=1)
    cancelled, waiting = (asyncio.create_task(generator.generate_draft(request)) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert len((await waiting).draft_tokens) == 1
    assert cancelled.cancelled()
    await generator.close()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt_token_ids": []}, "prompt_token_ids"),
        ({"prompt_token_ids": [4096]}, "prompt_token_ids"),
        ({"prompt_token_ids": [-1]}, "prompt_token_ids"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 129}, "max_tokens"),
        ({"prompt": "a", "sampling": Sampling(temperature=-0.1)}, "temperature"),
        ({"prompt": "a", "sampling": Sampling(temperature=float("nan"))}, "temperature"),
        ({"prompt": "a", "sampling": Sampling(top_p=0)}, "top_p"),
        ({"prompt": "a", "sampling": Sampling(top_p=1.1)}, "top_p"),
        ({"prompt": "a", "sampling": Sampling(top_k=-1)}, "top_k"),
        ({"prompt": "a", "sampling": Sampling(logit_bias=((4096, 1.0),))}, "logit_bias"),
        ({"prompt": "a", "sampling": Sampling(logit_bias=((5, 1e300),))}, "logit_bias"),
        ({"prompt": "a", "sampling": Sampling(logit_bias=((5, float("nan")),))}, "logit_bias"),
        ({"prompt": "a", "sampling": Sampling(logit_bias=((5, 1.0),) * 1025)}, "logit_bias"),
    ],
)
async def test_a_wrong_draft_request_names_the_field(engine: EdgeEngine, fields: dict, param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        await DraftGenerator(engine).generate_draft(DraftRequest(**fields))
    assert refusal.value.param == param
