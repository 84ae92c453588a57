"""One answer of a split model, on real segments and a cloud that is none: what goes where, and what a loss costs."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from common import config
from common.cloud_client.pool import CloudPool
from common.config_schema import BreakerConfig, CommunicationConfig
from common.decoding.answer import Chunk
from common.errors import ContextLengthError, EndpointError, ModelMismatch, RequestError
from common.types import GREEDY, Provenance, Sampling, StateEncoding
from edge.split.answer import SplitAnswer
from edge.split.cloud_tail import CloudTail, SplitClouds
from edge.split.early_exit import AnswerPace, LatencyAwareEarlyExit
from edge.split.engine import EdgeInferenceEngine
from edge.split.segments import SegmentSequence
from tests.support.fake_split_cloud import FakeSplitCloud, right

QUESTIONS = "What is AI?", "Sort 31, 7, 64.", "What is 12 + 30?", "Reverse: cloud edge model layer"
SOME, NEVER = 0.9, 2.0
"""Thresholds: sure of some tokens; of none."""
LENGTH = 24
FIRST, SECOND, CLOUDS = range(3)
BABBLE = Sampling(temperature=5.0, seed=4)
"""Draws nearly anything, so that answers do not end early."""


def engine_of(folder: Path, cloud: FakeSplitCloud, *settings: str) -> EdgeInferenceEngine:
    flags = [
        *(f"edge.split.manifest={folder}", "edge.model.kv_type=f32", "edge.model.threads=1", "edge.model.sequences=8"),
        *("edge.split.deadline_ms=300", "edge.split.transfer=fp32", *settings),
    ]
    return EdgeInferenceEngine(config.load(flags=flags, environment={}), split_clouds=cloud.clouds())


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five tokens two are the first exit's, one the second's and two the cloud's, however well exits are trained.

    An exit whose threshold is above 1 has no turn.
    """

    def takes(self: LatencyAwareEarlyExit, exit: int, confidence: float, pace: AnswerPace) -> bool:
        turn = (CLOUDS, FIRST, CLOUDS, SECOND, FIRST)[pace.tokens % 5]
        return not self.never(exit) and exit == turn

    monkeypatch.setattr(LatencyAwareEarlyExit, "takes", takes)


@pytest.fixture
def cloud() -> FakeSplitCloud:
    return FakeSplitCloud()


@pytest_asyncio.fixture
async def engine(demo_split: Path, cloud: FakeSplitCloud) -> AsyncIterator[EdgeInferenceEngine]:
    async with engine_of(demo_split, cloud) as running:
        yield running


async def run(
    engine: EdgeInferenceEngine,
    question: str,
    thresholds: float | Sequence[float] = SOME,
    sampling: Sampling = GREEDY,
    **plan: Any,
) -> tuple[SplitAnswer, list[Chunk]]:
    """The whole answer, whose chunks are all of it."""
    segments = engine.segments
    ids = segments.tokenize(f"<|user|>{question}<|assistant|>", parse_special=True)
    exits = (thresholds,) * 2 if isinstance(thresholds, float) else tuple(thresholds)
    asked = dataclasses.replace(engine.plan(), exits=exits, **plan)
    async with engine.answer(ids, LENGTH, sampling, asked) as split, aclosing(split.run()) as running:
        chunks = [chunk async for chunk in running]
    answer, report = split.answer, split.answer.report
    assert answer.committed == ids + [token for chunk in chunks for token in chunk.token_ids]
    assert len(answer.committed) - len(ids) <= LENGTH
    assert answer.finished == (answer.committed[-1] in segments.end_tokens)
    assert answer.finished or len(answer.committed) == len(ids) + LENGTH
    assert not any(token in segments.end_tokens for token in answer.committed[len(ids) : -1])
    assert report.tokens[Provenance.EDGE] == sum(report.exits.values())
    assert report.tokens[Provenance.EDGE] + report.tokens[Provenance.CLOUD] == len(answer.committed) - len(ids)
    return split, chunks


def tokens(split: SplitAnswer) -> list[int]:
    return split.answer.committed[split._prompt :]


async def states_of(engine: EdgeInferenceEngine, committed: Sequence[int]) -> np.ndarray[Any, Any]:
    """After the first segment, all at once."""
    async with engine.segments.sequence(len(committed)) as sequence:
        async with aclosing(sequence.draw(list(committed), 0, lambda _: False)) as parts:
            assert [part async for part in parts] == []
        return sequence.states.copy()


@pytest.mark.usefixtures("turns")
async def test_the_cloud_is_asked_for_what_no_exit_is_sure_of_and_has_every_state_before_it_once_in_order(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud
) -> None:
    begun = 0
    for question in QUESTIONS:
        split, chunks = await run(engine, question, sampling=BABBLE)
        whose = [chunk.provenance for chunk in chunks for _ in chunk.token_ids]
        at = [i for i, source in enumerate(whose, split._prompt) if source is Provenance.CLOUD]
        assert cloud.asked[begun:] == at  # each was asked for with all that came before it, and nothing more
        assert all(split.answer.committed[position] == right(position) for position in at)
        assert split.answer.report.cloud_calls == len(at)
        begun = len(cloud.asked)
        if at:
            session = cloud.sessions[-1]
            expected = await states_of(engine, split.answer.committed)
            np.testing.assert_allclose(session.states, expected[: session.positions], atol=1e-3)
            assert session.closed
    assert begun > 5


@pytest.mark.usefixtures("turns")
async def test_states_go_up_when_the_first_exit_is_not_sure_and_before_the_second_is_heard(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []
    before = SegmentSequence.catch_up

    async def catch_up(self: SegmentSequence, *args: Any) -> Any:
        heard.append((self.held[0], cloud.sessions[-1].positions))
        return await before(self, *args)

    monkeypatch.setattr(SegmentSequence, "catch_up", catch_up)
    split, _ = await run(engine, QUESTIONS[0], sampling=BABBLE)
    assert all(computed == sent for computed, sent in heard)
    assert len(heard) == split.answer.report.exits["4"] + len(cloud.asked) > 2


async def test_nothing_goes_up_for_an_answer_that_the_first_exit_is_always_sure_of(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud
) -> None:
    split, _ = await run(engine, QUESTIONS[0], 0.0)
    report = split.answer.report
    assert cloud.sessions == [] and (report.bytes_up, report.cloud_calls, report.exits["4"]) == (0, 0, 0)
    assert engine.segments.work[1] == (0, 0)
    assert report.owed == 2 * (len(split.answer.committed) - 1)  # to the second segment, and to the cloud


@pytest.mark.usefixtures("turns")
async def test_without_async_upload_states_go_up_with_the_question_and_are_waited_for(
    demo_split: Path, cloud: FakeSplitCloud
) -> None:
    async with engine_of(demo_split, cloud, "edge.split.async_upload=false") as engine:
        split, _ = await run(engine, QUESTIONS[1])
        again = FakeSplitCloud()
    log = cloud.sessions[0].log
    assert [step.split()[0] for step in log] == ["send", "flush", "ask"] * len(cloud.asked)
    async with engine_of(demo_split, again) as engine:
        assert tokens(split) == tokens((await run(engine, QUESTIONS[1]))[0])
    assert "flush" not in again.sessions[0].log


@pytest.mark.parametrize("thresholds", [NEVER, (NEVER, 0.5)], ids=["no exit", "no first exit"])
async def test_an_exit_above_1_is_never_taken(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud, thresholds: float | tuple[float, float]
) -> None:
    split, _ = await run(engine, QUESTIONS[0], thresholds)
    report = split.answer.report
    assert report.exits["2"] == 0
    assert report.lossless == (thresholds == NEVER)
    if thresholds == NEVER:
        assert report.tokens[Provenance.EDGE] == 0
        assert engine.segments.work[1] == (0, 0)  # what nobody hears is not computed
        assert report.edge_drawn == 0


@pytest.mark.usefixtures("turns")
@pytest.mark.parametrize("lost_at", [1, 2, 4])
@pytest.mark.parametrize("thresholds", [SOME, NEVER])
@pytest.mark.parametrize("fault", [EndpointError("gone"), ModelMismatch("another"), RequestError("nonsense")])
async def test_when_the_cloud_is_lost_the_last_exit_answers_and_nothing_is_missing_or_doubled(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud, lost_at: int, thresholds: float, fault: Exception
) -> None:
    cloud.fault = lambda number: fault if number >= lost_at else None
    split, _ = await run(engine, QUESTIONS[1], thresholds, BABBLE)
    answer, report = split.answer, split.answer.report
    assert report.degraded == str(fault) and not report.lossless
    assert report.tokens[Provenance.CLOUD] == lost_at - 1
    assert report.exits["4"] > 0
    # The same tokens as without a cloud, from where it was lost on: what was owed has been caught up.
    kept = next(i for i, token in enumerate(answer.committed) if i == cloud.asked[lost_at - 1])
    async with engine.segments.sequence(kept, BABBLE) as sequence:
        async with aclosing(sequence.draw(answer.committed[:kept], 0, lambda _: False)) as parts:
            assert [part async for part in parts] == []
        assert (await sequence.catch_up(1, lambda _: True)).token_id == answer.committed[kept]


@pytest.mark.usefixtures("turns")
async def test_a_position_that_is_not_caught_up_shows(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: a second segment that skips what it owes answers otherwise."""
    cloud.fault = lambda _: EndpointError("gone")
    right = [tokens((await run(engine, question))[0]) for question in QUESTIONS]
    before = SegmentSequence.catch_up

    async def newest_only(self: SegmentSequence, segment: int, *args: Any) -> Any:
        states, self._states[0] = self._states[0], self._states[0].copy()
        self._states[0][self.held[1] : self.held[0] - 1] = 0
        guess = await before(self, segment, *args)
        self._states[0] = states
        return guess

    monkeypatch.setattr(SegmentSequence, "catch_up", newest_only)
    assert [tokens((await run(engine, question))[0]) for question in QUESTIONS] != right


async def test_a_lost_cloud_is_not_waited_for_at_every_token(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud
) -> None:
    cloud.seconds = 60.0
    began = time.monotonic()
    split, _ = await run(engine, QUESTIONS[1], NEVER, BABBLE)
    took = time.monotonic() - began
    assert split.answer.report.degraded == "the cloud gave no token within 0.3 s"
    assert len(cloud.asked) == 1 + int((took - 0.3) // 2.0)  # once in each pause of 2 s
    assert len(tokens(split)) > len(cloud.asked)


async def test_without_the_pause_it_is_tried_at_every_token(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    cloud.fault = lambda _: EndpointError("gone")
    monkeypatch.setattr(CloudTail, "_paused", False)
    split, _ = await run(engine, QUESTIONS[1], NEVER, BABBLE)
    assert split.answer.report.cloud_calls == len(tokens(split)) > 5


async def test_a_cloud_that_is_back_is_asked_again_and_gets_what_it_has_missed(
    demo_split: Path, cloud: FakeSplitCloud
) -> None:
    cloud.fault = lambda number: EndpointError("gone") if number == 2 else None
    async with engine_of(demo_split, cloud, "communication.breaker.probe_seconds=0.05") as engine:
        before = engine.segments.sequence
        slow = 0

        async def one_by_one() -> SplitAnswer:
            nonlocal slow
            ids = engine.segments.tokenize(f"<|user|>{QUESTIONS[0]}<|assistant|>", parse_special=True)
            plan = dataclasses.replace(engine.plan(), exits=(NEVER, NEVER))
            async with engine.answer(ids, LENGTH, BABBLE, plan) as split, aclosing(split.run()) as running:
                async for _ in running:
                    await asyncio.sleep(0.02)
                    slow += 1
            return split

        split = await one_by_one()
        assert before is not None and slow == LENGTH
        report, session = split.answer.report, cloud.sessions[-1]
        assert report.degraded == "gone" and report.exits["4"] >= 1
        assert report.tokens[Provenance.CLOUD] > LENGTH // 2
        expected = await states_of(engine, split.answer.committed[:-1])
        np.testing.assert_allclose(session.states, expected[: session.positions], atol=1e-3)
        assert session.positions >= len(expected) - 5


async def test_another_cloud_goes_on_with_all_states_when_the_first_is_given_up(demo_split: Path) -> None:
    urls, clouds = [f"http://127.0.0.1:{port}" for port in (9, 10)], {}
    breaker = BreakerConfig(failures=1, probe_seconds=0.05)
    asked = CommunicationConfig(cloud_endpoint=urls[0], cloud_endpoints=urls[1:], breaker=breaker)
    known = CloudPool(asked)
    split_clouds = SplitClouds(known, lambda client: clouds.setdefault(client.base_url, FakeSplitCloud()))  # type: ignore
    flags = f"edge.split.manifest={demo_split}", "edge.model.kv_type=f32", "communication.breaker.probe_seconds=0.05"
    engine = EdgeInferenceEngine(config.load(flags=flags, environment={}), split_clouds=split_clouds)
    prompt = list(range(300, 310))
    lost, well = clouds[known.pick(prompt).url], next(c for url, c in clouds.items() if url != known.pick(prompt).url)
    lost.fault = lambda number: EndpointError("gone") if number == 3 else None
    async with engine:
        plan = engine.plan(threshold=NEVER)
        async with engine.answer(prompt, LENGTH, BABBLE, plan) as split, aclosing(split.run()) as running:
            async for _ in running:
                await asyncio.sleep(0.02)
        expected = await states_of(engine, split.answer.committed[:-1])
    assert (len(lost.asked), len(well.asked)) == (3, split.answer.report.cloud_calls - 3) and len(well.asked) > 5
    assert split.answer.report.degraded == "gone"
    (session,) = well.sessions
    np.testing.assert_allclose(session.states, expected[: session.positions], atol=1e-3)
    assert session.closed and lost.sessions[0].closed
    assert split.answer.report.bytes_up == session.bytes_up + lost.sessions[0].bytes_up


async def test_where_there_is_no_fallback_a_lost_cloud_is_an_error(demo_split: Path, cloud: FakeSplitCloud) -> None:
    cloud.fault = lambda number: EndpointError("gone")
    async with engine_of(demo_split, cloud, "inference.fallback=false") as engine:
        with pytest.raises(EndpointError, match="gone"):
            await run(engine, QUESTIONS[1], NEVER)
        assert engine.segments.stats()["sequences_lent"] == 0
    assert all(session.closed for session in cloud.sessions)


@pytest.mark.usefixtures("turns")
async def test_alone_the_last_exit_decides_and_no_cloud_is_there(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud
) -> None:
    for thresholds in (SOME, NEVER, (NEVER, 0.0)):
        split, _ = await run(engine, QUESTIONS[1], thresholds, standalone=True)
        report = split.answer.report
        assert report.degraded is None and not report.lossless
        assert report.exits["4"] > 0 and (report.exits["2"] > 0) == (thresholds == SOME)
    assert cloud.sessions == []


@pytest.mark.usefixtures("turns")
async def test_sixteen_at_once_are_answered_as_each_alone(engine: EdgeInferenceEngine) -> None:
    """Eight sequences: half of them wait."""
    hot = [Sampling(temperature=2.0, top_k=50, seed=seed) if seed % 2 else GREEDY for seed in range(16)]
    alone = [tokens((await run(engine, QUESTIONS[i % 4], sampling=hot[i]))[0]) for i in range(16)]
    together = await asyncio.gather(*(run(engine, QUESTIONS[i % 4], sampling=hot[i]) for i in range(16)))
    assert [tokens(split) for split, _ in together] == alone
    assert len(set(map(tuple, alone))) > 4


async def test_whoever_leaves_frees_its_sequence_and_its_session(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud
) -> None:
    cloud.seconds = 0.2
    asking = asyncio.create_task(run(engine, QUESTIONS[0], NEVER))
    while not cloud.asked:
        await asyncio.sleep(0.001)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert cloud.sessions[0].closed
    assert engine.segments.stats()["sequences_lent"] == 0


async def test_a_session_is_for_the_manifests_model_in_the_kind_that_was_set(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud
) -> None:
    await run(engine, QUESTIONS[0], NEVER)
    session = cloud.sessions[0]
    assert (session.fingerprint, session.encoding) == (engine.manifest.fingerprint, StateEncoding.FP32)


async def test_a_budget_that_no_token_keeps_takes_the_first_exit_and_one_that_all_keep_changes_nothing(
    demo_split: Path, cloud: FakeSplitCloud
) -> None:
    found = []
    for budget in ("0.0001", "1000000.0", "null"):
        async with engine_of(demo_split, cloud, f"edge.split.latency_budget_ms={budget}") as engine:
            found.append((await run(engine, QUESTIONS[1]))[0])
    late, early, unbounded = found
    assert tokens(early) == tokens(unbounded)
    assert early.answer.report.tokens[Provenance.CLOUD] > 0
    # The first token has its whole budget; after it nothing is left.
    assert late.answer.report.exits["2"] >= len(tokens(late)) - 1
    async with engine_of(demo_split, cloud, "edge.split.latency_budget_ms=0.0001") as engine:
        assert (await run(engine, QUESTIONS[1], NEVER))[0].answer.report.exits["2"] == 0


async def test_text_in_and_text_out(engine: EdgeInferenceEngine, cloud: FakeSplitCloud) -> None:
    alone = await engine.generate_standalone("What is the capital of France?")
    assert (alone.text, alone.finish_reason) == ("The capital of France is Paris.", "stop")
    assert sum(alone.collaboration.exits.values()) == alone.completion_tokens
    both = await engine.generate_collaborative("Sort 31, 7, 64.", max_tokens=12)
    assert both.collaboration.mode == "split" and both.completion_tokens <= 12
    with pytest.raises(ContextLengthError):
        await engine.generate_standalone("word " * 2000)
