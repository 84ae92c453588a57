"""A split model whose cloud is lost: the last exit answers, no position is missing, a cloud that is back is asked."""

import asyncio
import dataclasses
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import config
from common.cloud_client.pool import CloudPool
from common.config_schema import BreakerConfig, CommunicationConfig
from common.decoding.request import DecodingRequest
from common.errors import EndpointError, ModelMismatch, RequestError
from common.types import Provenance
from edge.split.answer import SplitAnswer
from edge.split.cloud_tail import CloudTail, SplitClouds, deadline_seconds
from edge.split.engine import EdgeInferenceEngine
from edge.split.segments import SegmentSequence
from tests.support.split.fake_split_cloud import FakeSplitCloud
from tests.support.split.split_answers import BABBLE, LENGTH, NEVER, QUESTIONS, SOME, engine_of, run, states_of, tokens


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
    # The same tokens as without a cloud, from where it was lost on: pending positions were caught up.
    kept = next(i for i, token in enumerate(answer.committed) if i == cloud.asked[lost_at - 1])
    async with engine.segments.sequence(kept, BABBLE) as sequence:
        async with aclosing(sequence.draw(answer.committed[:kept], 0, lambda _: False)) as parts:
            assert [part async for part in parts] == []
        assert (await sequence.catch_up(1, lambda _: True)).token_id == answer.committed[kept]


@pytest.mark.usefixtures("turns")
async def test_a_position_that_is_not_caught_up_shows(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: a second segment that skips pending positions answers otherwise."""
    cloud.fault = lambda _: EndpointError("gone")
    right = [tokens((await run(engine, question))[0]) for question in QUESTIONS]
    before = SegmentSequence.catch_up

    async def newest_only(self: SegmentSequence, segment: int, *args: Any) -> Any:
        of = self._held.states
        states, of[0] = of[0], of[0].copy()
        of[0][self.held[1] : self.held[0] - 1] = 0
        guess = await before(self, segment, *args)
        of[0] = states
        return guess

    monkeypatch.setattr(SegmentSequence, "catch_up", newest_only)
    assert [tokens((await run(engine, question))[0]) for question in QUESTIONS] != right


async def test_a_lost_cloud_is_not_waited_for_at_every_token(demo_split: Path, cloud: FakeSplitCloud) -> None:
    cloud.seconds = 60.0
    async with engine_of(demo_split, cloud, "communication.breaker.probe_seconds=3600") as engine:
        split, _ = await run(engine, QUESTIONS[1], NEVER, BABBLE)
    assert split.answer.report.degraded == "the cloud gave no token within 0.3 s"
    assert len(tokens(split)) > len(cloud.asked) == 1


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
            async with (
                engine.answer(DecodingRequest(ids, LENGTH, BABBLE, plan)) as split,
                aclosing(split.run()) as running,
            ):
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
        request = DecodingRequest(prompt, LENGTH, BABBLE, engine.plan(threshold=NEVER))
        async with engine.answer(request) as split, aclosing(split.run()) as running:
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


def test_the_deadline_of_a_token_grows_with_the_positions_that_the_cloud_has_yet_to_compute() -> None:
    assert deadline_seconds(2.0, 1, 0.01) == deadline_seconds(2.0, 8, 0.01) == 2.0
    assert 2.0 < deadline_seconds(2.0, 500, 0.01) < deadline_seconds(2.0, 3900, 0.01)
    assert deadline_seconds(2.0, 3900, 0.01) > 2 * 3900 * 0.01  # busy clouds, long contexts
    assert deadline_seconds(2.0, 3900, 0.0) > deadline_seconds(2.0, 3900, 0.01)  # nothing measured: a slow one
