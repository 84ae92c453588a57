"""One answer of a split model, on real segments and a fake cloud: what is sent where, and what a lost cloud costs."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.enums import StateEncoding
from common.errors import ContextLengthError
from common.types import GREEDY, Provenance, Sampling
from edge.split.engine import EdgeInferenceEngine
from edge.split.segments import SegmentSequence
from models.partition.partition import partition
from tests.support.split.fake_split_cloud import FakeSplitCloud, right
from tests.support.split.split_answers import BABBLE, NEVER, QUESTIONS, SOME, engine_of, run, states_of, tokens


@pytest.mark.usefixtures("turns")
async def test_the_cloud_is_asked_where_no_exit_is_confident_and_has_every_earlier_state_once_in_order(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud
) -> None:
    begun = 0
    for question in QUESTIONS:
        split, chunks = await run(engine, question, sampling=BABBLE)
        whose = [chunk.provenance for chunk in chunks for _ in chunk.token_ids]
        at = [i for i, source in enumerate(whose, split._prompt_tokens) if source is Provenance.CLOUD]
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
async def test_states_are_uploaded_when_the_first_exit_is_below_its_threshold_and_before_the_second_is_computed(
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


async def test_nothing_is_uploaded_for_an_answer_that_the_first_exit_is_always_confident_of(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud
) -> None:
    split, _ = await run(engine, QUESTIONS[0], 0.0)
    report = split.answer.report
    assert cloud.sessions == [] and (report.bytes_up, report.cloud_calls, report.exits["4"]) == (0, 0, 0)
    assert engine.segments.work[1] == (0, 0)
    assert report.owed == 2 * (len(split.answer.committed) - 1)  # in the second segment, and in the cloud


@pytest.mark.usefixtures("turns")
async def test_positions_that_the_cloud_was_spared_go_up_together(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud
) -> None:
    await run(engine, QUESTIONS[0], sampling=BABBLE)
    later = [int(step.split()[1]) for step in cloud.sessions[0].log if step.startswith("send")][1:]
    assert max(later) > 1 and len(later) < sum(later)


@pytest.mark.usefixtures("turns")
async def test_without_async_upload_states_are_sent_with_the_question_and_flushed_before_it(
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
        assert engine.segments.work[1] == (0, 0)  # a disabled exit is not computed
        assert report.edge_drawn == 0


@pytest.mark.usefixtures("turns")
async def test_alone_the_last_exit_decides_and_no_cloud_is_asked(
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


async def test_a_client_that_leaves_frees_its_sequence_and_its_session(
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


async def test_of_three_exits_each_is_asked_in_turn_before_the_cloud(tmp_path: Path, cloud: FakeSplitCloud) -> None:
    """The one in the middle has computed what the last one needs of its segment."""
    partition("models/demo-cloud", [1, 2, 4], None, "f32", tmp_path / "pieces")
    async with engine_of(tmp_path / "pieces", cloud) as engine:
        split, _ = await run(engine, QUESTIONS[0], (1.0, 1.0, 1.0))
        assert split.answer.report.tokens[Provenance.CLOUD] > 0
        alone, _ = await run(engine, QUESTIONS[0], (1.0, 1.0, 1.0), standalone=True)
        assert alone.answer.report.exits["4"] > 0
