"""KV of earlier answers on a split model: the same tokens as a cold answer, less work, each tenant its own."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from common.decoding.request import DecodingRequest
from common.errors import EndpointError, EngineError
from common.http.request_context import current_tenant
from edge.llama.segment import Feed, LlamaSegment, SegmentKV, Step
from edge.split.engine import EdgeInferenceEngine
from edge.split.held import HeldSequences
from edge.split.scheduler import Freed
from tests.support.split.fake_split_cloud import FakeSplitCloud
from tests.support.split.reusing_answers import ALWAYS, LENGTH, answered, prompt_of
from tests.support.split.split_answers import BABBLE, NEVER, QUESTIONS, engine_of, states_of


@contextmanager
def tenant(name: str) -> Iterator[None]:
    token = current_tenant.set(name)
    try:
        yield
    finally:
        current_tenant.reset(token)


@pytest_asyncio.fixture
async def cold(demo_split: Path, cloud: FakeSplitCloud) -> AsyncIterator[EdgeInferenceEngine]:
    """What every answer is compared with: its cloud's tokens depend on the position only, as those of `cloud`."""
    async with engine_of(demo_split, FakeSplitCloud(), "edge.model.sequences=2") as engine:
        yield engine


async def test_a_second_turn_reads_and_sends_only_what_is_new(
    engine: EdgeInferenceEngine, cold: EdgeInferenceEngine, cloud: FakeSplitCloud
) -> None:
    first = (await answered(engine, prompt_of(engine, QUESTIONS[0]), (NEVER, NEVER), BABBLE)).answer
    before = engine.segments.work[0][1]
    turn = [*first.committed, *prompt_of(engine, QUESTIONS[1])]
    second = (await answered(engine, turn, (NEVER, NEVER), BABBLE)).answer
    assert second.report.cached_tokens == len(first.committed) - 1  # the last token was committed, but never read
    assert engine.segments.work[0][1] - before == len(second.committed) - 1 - second.report.cached_tokens
    assert cloud.sessions[1].begun_with == len(first.committed) - 1
    assert second.report.bytes_up < first.report.bytes_up + 40 * cloud.sessions[0].states.shape[1]
    assert second.committed == (await answered(cold, turn, (NEVER, NEVER), BABBLE, reuse=False)).answer.committed
    np.testing.assert_allclose(cloud.sessions[1].states, await states_of(cold, second.committed[:-1]), atol=1e-3)
    assert engine.segments.stats()["reused_prompt_tokens"] == second.report.cached_tokens


@pytest.mark.usefixtures("turns")
@pytest.mark.parametrize("seed", range(3))
async def test_any_history_gives_the_tokens_of_a_cold_answer_and_the_states_that_belong_to_them(
    demo_split: Path, cold: EdgeInferenceEngine, cloud: FakeSplitCloud, seed: int
) -> None:
    """Turns, other questions and other endings of the same prompt, on few sequences: later segments hold less."""
    rng, cut = random.Random(seed), ((0.9, 0.9), (ALWAYS, NEVER), (NEVER, ALWAYS), (NEVER, NEVER))
    async with engine_of(demo_split, cloud, "edge.model.sequences=2") as engine:
        said, found = [prompt_of(engine, QUESTIONS[0])], 0
        for _ in range(12):
            earlier = rng.choice(said)
            prompt = earlier[: rng.randrange(3, len(earlier) + 1)] + prompt_of(engine, rng.choice(QUESTIONS))
            thresholds, alone = rng.choice(cut), rng.random() < 0.2
            begun = len(cloud.sessions)
            split = await answered(engine, prompt, thresholds, BABBLE, rng.random() < 0.9, alone)
            right = await answered(cold, prompt, thresholds, BABBLE, False, alone)
            assert split.answer.committed == right.answer.committed
            assert split.answer.report.owed >= 0
            for session in cloud.sessions[begun:]:
                expected = await states_of(cold, split.answer.committed)
                np.testing.assert_allclose(session.states, expected[: session.positions], atol=1e-3)
            found += split.answer.report.cached_tokens
            said.append(split.answer.committed[:200])
        assert found > 0
    assert all(session.closed for session in cloud.sessions)


async def test_a_pending_position_of_an_earlier_answer_is_caught_up_when_it_is_needed(
    engine: EdgeInferenceEngine, cold: EdgeInferenceEngine
) -> None:
    """The first answer leaves everything pending in the second segment; the next one needs all of it there."""
    first = (await answered(engine, prompt_of(engine, QUESTIONS[0]), (ALWAYS, NEVER))).answer
    assert engine.segments.work[1] == (0, 0)
    turn = [*first.committed, *prompt_of(engine, QUESTIONS[1])]
    second = await answered(engine, turn, (NEVER, ALWAYS))
    assert second.answer.report.cached_tokens > 0
    assert engine.segments.work[1][1] == len(second.answer.committed) - 1
    assert second.answer.committed == (await answered(cold, turn, (NEVER, ALWAYS), reuse=False)).answer.committed


async def test_a_key_never_finds_what_another_has_asked(engine: EdgeInferenceEngine, cloud: FakeSplitCloud) -> None:
    with tenant("one"):
        turn = (await answered(engine, prompt_of(engine, QUESTIONS[0]), (NEVER, NEVER), BABBLE)).answer.committed
    for other in ("two", ""):
        with tenant(other):
            assert (await answered(engine, turn, (NEVER, NEVER))).answer.report.cached_tokens == 0
    assert [session.begun_with for session in cloud.sessions] == [0, 0, 0]
    with tenant("one"):
        assert (await answered(engine, turn, (NEVER, NEVER))).answer.report.cached_tokens == len(turn) - 1
    assert cloud.sessions[3].begun_with == len(turn) - 1


async def test_without_reuse_nothing_is_found_and_nothing_is_left(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud
) -> None:
    prompt = prompt_of(engine, QUESTIONS[0])
    for reuse in (False, True, False):
        assert (await answered(engine, prompt, (NEVER, NEVER), reuse=reuse)).answer.report.cached_tokens == 0
    assert [session.begun_with for session in cloud.sessions] == [0, 0, 0]
    assert [session.closed for session in cloud.sessions] == [True, False, True]
    assert engine.segments.stats()["reused_prompt_tokens"] == 0


async def test_many_answers_to_one_prompt_share_what_the_first_has_read(
    engine: EdgeInferenceEngine, cold: EdgeInferenceEngine
) -> None:
    """Also while the first one runs."""
    prompt = prompt_of(engine, " ".join(QUESTIONS))
    plan = replace(engine.plan(), exits=(ALWAYS, NEVER))
    request = DecodingRequest(prompt, LENGTH, BABBLE, plan)
    async with engine.answer(request, True) as split, aclosing(split.run()) as running:
        await anext(running)
        others = await asyncio.gather(*(answered(engine, prompt, (NEVER, NEVER)) for _ in range(3)))
    right = (await answered(cold, prompt, (NEVER, NEVER), reuse=False)).answer.committed
    for other in others:
        assert (other.answer.report.cached_tokens, other.answer.committed) == (len(prompt) - 1, right)


@pytest.mark.parametrize("thresholds", [(NEVER, NEVER), (NEVER, ALWAYS)])
async def test_an_answer_whose_kv_was_lost_meanwhile_computes_it_again(
    engine: EdgeInferenceEngine, cold: EdgeInferenceEngine, cloud: FakeSplitCloud, thresholds: tuple[float, float]
) -> None:
    """As when another answer, whose KV it was to share, has failed in a step just before."""
    turn = (await answered(engine, prompt_of(engine, QUESTIONS[0]), (NEVER, ALWAYS), BABBLE)).answer.committed
    before = engine.segments.work[0][1]
    for sequence in range(8):
        engine.segments._inbox.put(Freed(sequence))
    again = (await answered(engine, [*turn, 7], thresholds, BABBLE)).answer
    assert again.committed == (await answered(cold, [*turn, 7], thresholds, BABBLE, reuse=False)).answer.committed
    assert engine.segments.work[0][1] - before == len(again.committed) - 1
    if thresholds == (NEVER, NEVER):
        np.testing.assert_allclose(cloud.sessions[-1].states, await states_of(cold, again.committed[:-1]), atol=1e-3)


async def test_a_step_that_fails_leaves_nothing_to_find(engine: EdgeInferenceEngine) -> None:
    turn = (await answered(engine, prompt_of(engine, QUESTIONS[0]))).answer.committed
    with pytest.raises(EngineError, match="could not decode"):
        await answered(engine, [*turn, 10**6, 1])
    assert (await answered(engine, [*turn, 1])).answer.report.cached_tokens == 0


async def test_a_session_whose_question_is_open_or_has_failed_is_not_gone_on_with(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud
) -> None:
    prompt = prompt_of(engine, QUESTIONS[0])
    cloud.seconds = 60
    leaving = asyncio.create_task(answered(engine, prompt, (NEVER, NEVER)))
    while not cloud.asked:
        await asyncio.sleep(0.001)
    leaving.cancel()
    await asyncio.wait([leaving])
    cloud.seconds, cloud.fault = 0, lambda number: EndpointError("gone") if number == 2 else None
    assert (await answered(engine, prompt, (NEVER, NEVER))).answer.report.degraded == "gone"
    cloud.fault = lambda number: None
    await answered(engine, prompt, (NEVER, NEVER))
    assert [session.begun_with for session in cloud.sessions] == [0, 0, 0]
    assert [session.closed for session in cloud.sessions] == [True, True, False]


async def test_a_cloud_that_has_forgotten_a_session_has_time_to_compute_it_again(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud
) -> None:
    """What the edge sends may be few positions, and what the cloud lacks a whole conversation."""
    turn = (await answered(engine, prompt_of(engine, " ".join(QUESTIONS)), (NEVER, NEVER), BABBLE)).answer.committed
    first, begun = cloud.deadlines[0], len(cloud.deadlines)
    await answered(engine, [*turn, *prompt_of(engine, "And?")], (NEVER, NEVER), BABBLE)
    assert cloud.sessions[1].begun_with == len(turn) - 1
    assert cloud.deadlines[begun] > first > cloud.deadlines[begun + 1]


async def test_what_no_answer_uses_takes_no_cells_which_every_step_would_read(
    engine: EdgeInferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = list[int]()
    decode = LlamaSegment.decode

    def seen(self: LlamaSegment, feeds: Sequence[Feed]) -> Step | None:
        cells.append(sum(self.held) - sum(self.held[feed.sequence] for feed in feeds))
        return decode(self, feeds)

    monkeypatch.setattr(LlamaSegment, "decode", seen)
    for question in QUESTIONS:
        await answered(engine, prompt_of(engine, question), (0.9, ALWAYS))
    assert cells and not any(cells)


async def test_an_answer_that_leaves_nothing_copies_no_kv(
    engine: EdgeInferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, take_out = list[int](), LlamaSegment.take_out

    def counted(self: LlamaSegment, sequence: int) -> SegmentKV:
        copied.append(sequence)
        return take_out(self, sequence)

    monkeypatch.setattr(LlamaSegment, "take_out", counted)
    await answered(engine, prompt_of(engine, QUESTIONS[0]), (NEVER, NEVER), reuse=False)
    await answered(engine, prompt_of(engine, QUESTIONS[1]), (NEVER, NEVER))
    await answered(engine, prompt_of(engine, QUESTIONS[2]), (NEVER, NEVER), reuse=False)
    assert len(copied) == engine.segments.count


def test_a_sequence_that_would_lose_more_than_is_found_is_copied_and_not_taken() -> None:
    held = HeldSequences(3, 2, 64, 4)
    held.begin(1, [], "a")
    held[1].tokens, held[1].held = list(range(40)), [40, 10]
    assert held.reusable(1, list(range(10)), "a") == 0 < held.reusable(1, list(range(20)), "a")
    assert held.reusable(1, list(range(20)), "b") == held.reusable(1, list(range(20)), None) == 0
    begun = held.begin(0, [*range(12), 99], "a")
    assert (begun.source, begun.lengths, held[0].computed) == (1, (12, 10), list(range(12)))
    assert [count for _, _, count in begun.rows] == [12]
    assert held.begin(2, list(range(12)), None).lengths == (0, 0)
    assert held[1].held == [40, 10]
