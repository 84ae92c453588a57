"""Rounds with drafting ahead, and continuous verification: what they commit, waste and leave running."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest

from common.decoding.estimates import AnswerEstimates, Estimates
from common.decoding.pipeline import Pipeline
from common.decoding.policy import Plan
from common.decoding.request import DecodingRequest
from common.decoding.streaming import Continuation
from common.errors import EndpointError, OverloadedError
from common.protocol.stream_frames import TokensFrame
from common.types import GREEDY, Draft, Mode, Provenance, VerificationMode
from tests.support import fakes
from tests.support.fakes import FakeDrafter, FakeStream, FakeVerifier, Model, answer_of, cloud_model, erring_model

PROMPTS = [[p, p + 3, 2 * p] for p in range(1, 40)]
LONG = next(p for p in PROMPTS if len(answer_of(cloud_model, p, 40)) > 20)
ROUNDS = Plan(use_confidence_check=False, verification_mode=VerificationMode.ROUNDS)
CONTINUOUS = Plan(use_confidence_check=False, verification_mode=VerificationMode.CONTINUOUS)
MODELS = [cloud_model, erring_model(2), erring_model(5), lambda ids: 1]


async def answer(
    prompt: list[int], plan: Plan, drafter: FakeDrafter, verifier: FakeVerifier, max_tokens: int = 40
) -> tuple[list[int], Pipeline]:
    pipeline = Pipeline(DecodingRequest(prompt, max_tokens, GREEDY, plan), drafter, verifier)
    ids = [token async for chunk in pipeline.run() for token in chunk.token_ids]
    assert ids == pipeline.answer.committed[len(prompt) :]
    assert sum(pipeline.answer.report.tokens.values()) == len(ids)
    assert not drafter.busy
    return ids, pipeline


@pytest.mark.parametrize("plan", [ROUNDS, replace(ROUNDS, draft_ahead=False), CONTINUOUS, Plan(mode=Mode.CLOUD_ONLY)])
@pytest.mark.parametrize("model", MODELS)
async def test_every_lossless_mode_gives_the_clouds_own_answer(plan: Plan, model: Model) -> None:
    for prompt, max_tokens in itertools.product(PROMPTS, (1, 2, 17, 40)):
        ids, pipeline = await answer(prompt, plan, FakeDrafter(model), FakeVerifier(), max_tokens)
        assert ids == answer_of(cloud_model, prompt, max_tokens)
        assert pipeline.answer.report.lossless
        assert pipeline.answer.report.degraded is None


@pytest.mark.parametrize("plan", [ROUNDS, CONTINUOUS])
async def test_right_drafts_save_steps_of_the_cloud_and_waste_is_reported(plan: Plan) -> None:
    _, right = await answer(LONG, plan, FakeDrafter(cloud_model), FakeVerifier())
    _, wrong = await answer(LONG, plan, FakeDrafter(lambda ids: 1), FakeVerifier())
    assert right.answer.report.cloud_steps < wrong.answer.report.cloud_steps
    assert right.answer.report.tokens[Provenance.ACCEPTED] > 0
    report = wrong.answer.report
    assert report.tokens[Provenance.ACCEPTED] == 0
    assert report.edge_wasted == report.edge_drawn > 0


async def test_after_a_right_guess_of_the_bonus_token_the_next_draft_is_ready() -> None:
    ahead, waiting = FakeDrafter(cloud_model), FakeDrafter(cloud_model)
    _, with_guess = await answer(LONG, ROUNDS, ahead, FakeVerifier())
    _, without = await answer(LONG, replace(ROUNDS, draft_ahead=False), waiting, FakeVerifier())
    assert with_guess.answer.report.rounds == without.answer.report.rounds > 2
    # One draft for the first round; after that each is guessed in two parts, the bonus and what follows it.
    assert ahead.calls.count(1) >= with_guess.answer.report.rounds - 1
    assert [limit for limit in ahead.calls if limit > 1] == waiting.calls
    assert with_guess.answer.report.edge_drawn == without.answer.report.edge_drawn + ahead.calls.count(1)


async def test_a_wrong_guess_is_cancelled_at_once() -> None:
    drafter = FakeDrafter(erring_model(3))
    ids, pipeline = await answer(LONG, ROUNDS, drafter, FakeVerifier())
    assert ids == answer_of(cloud_model, LONG, 40)
    assert pipeline.answer.report.edge_wasted > 0


@pytest.mark.parametrize("plan", [ROUNDS, CONTINUOUS, Plan()])
@pytest.mark.parametrize("chunks", [0, 1, 3])
async def test_closing_early_leaves_nothing_running(plan: Plan, chunks: int) -> None:
    estimates, before = Estimates(), asyncio.all_tasks()
    pipeline = Pipeline(DecodingRequest(LONG, 40, GREEDY, plan), FakeDrafter(cloud_model), FakeVerifier(), estimates)
    async with aclosing(pipeline.run()) as run:
        for _ in range(chunks):
            await anext(run)
    assert asyncio.all_tasks() == before
    assert estimates.active == 0


@pytest.mark.parametrize("plan", [CONTINUOUS, Plan(mode=Mode.CLOUD_ONLY)])
async def test_a_stream_that_is_closed_early_reports_the_work_it_took(plan: Plan) -> None:
    pipeline = Pipeline(DecodingRequest(LONG, 40, GREEDY, plan), FakeDrafter(cloud_model), FakeVerifier())
    async with aclosing(pipeline.run()) as run:
        for _ in range(5):
            await anext(run)
    report = pipeline.answer.report
    assert report.cloud_steps == report.tokens[Provenance.CLOUD] > 0
    assert (report.rounds, report.drafted) == (1, report.accepted)
    assert report.cloud_latency_ms > 0


@pytest.mark.parametrize("steps", range(4))
@pytest.mark.parametrize("model", [cloud_model, erring_model(4)])
async def test_the_edge_continues_a_broken_stream_from_its_last_token(steps: int, model: Model) -> None:
    verifier = FakeVerifier(stream_lost_after=steps)
    verifier.lost_after = 1  # nor can it be reached again
    ids, pipeline = await answer(LONG, CONTINUOUS, FakeDrafter(model), verifier)
    came = verifier.streams[0].token_ids
    assert ids == came[len(LONG) :] + answer_of(model, came, 40 - (len(came) - len(LONG)))
    report = pipeline.answer.report
    assert report.degraded == "the cloud is lost" and not report.lossless
    assert report.tokens[Provenance.EDGE] == len(ids) - (len(came) - len(LONG))


async def test_after_one_cloud_is_lost_another_continues_and_then_the_edge() -> None:
    verifier = FakeVerifier(lost_after=2, stream_lost_after=2)
    ids, pipeline = await answer(LONG, CONTINUOUS, FakeDrafter(erring_model(3)), verifier)
    first, second = (stream.token_ids for stream in verifier.streams)
    assert second[: len(first)] == first and len(second) > len(first) > len(LONG)
    assert ids == second[len(LONG) :] + answer_of(erring_model(3), second, 40 - (len(second) - len(LONG)))
    assert pipeline.answer.report.degraded == "the cloud is lost"


@pytest.mark.parametrize("plan", [ROUNDS, CONTINUOUS])
async def test_without_fallback_a_lost_cloud_is_an_error(plan: Plan) -> None:
    verifier = FakeVerifier(lost_after=1, stream_lost_after=2)
    with pytest.raises(EndpointError):
        await answer(LONG, replace(plan, fallback=False), FakeDrafter(erring_model(3)), verifier)


async def test_the_cloud_alone_streams_and_is_sent_no_drafts() -> None:
    drafter, verifier = FakeDrafter(cloud_model), FakeVerifier()
    _, pipeline = await answer(LONG, Plan(mode=Mode.CLOUD_ONLY), drafter, verifier)
    assert not drafter.calls and not verifier.streams[0].drafts
    assert pipeline.answer.report.tokens[Provenance.CLOUD] == pipeline.answer.report.cloud_steps > 20
    assert pipeline.answer.report.cached_tokens == len(LONG) - 1


async def test_a_stream_goes_on_without_drafts_where_the_edge_is_too_busy_for_them() -> None:
    class BusyDrafter(FakeDrafter):
        async def draft(self, *args: object, **kwargs: object) -> Draft:
            raise OverloadedError("the queue is full")

    ids, pipeline = await answer(LONG, CONTINUOUS, BusyDrafter(cloud_model), FakeVerifier())
    assert ids == answer_of(cloud_model, LONG, 40)
    assert pipeline.answer.report.lossless and pipeline.answer.report.degraded is None
    assert pipeline.answer.report.cached_tokens == len(LONG) - 1  # as the cloud says: the edge has read nothing


@pytest.mark.parametrize("plan", [CONTINUOUS, Plan(mode=Mode.CLOUD_ONLY)])
async def test_tokens_that_arrive_all_at_once_are_not_taken_for_a_fast_cloud(plan: Plan) -> None:
    """A proxy may hold them back to the end, and so may the scheduler of a busy machine."""
    estimates, request = Estimates(), DecodingRequest(LONG, 40, GREEDY, plan)
    pipeline = Pipeline(request, FakeDrafter(erring_model(2)), FakeVerifier(step_ms=50.0), estimates)
    async for _ in pipeline.run():
        pass
    assert pipeline.answer.report.cloud_steps > 2
    assert estimates.step_seconds == pytest.approx(0.05, rel=0.5), "the cloud's own time, a part of it for drafts"
    assert estimates.gains[VerificationMode.CONTINUOUS].value < 2


class MergedStream(FakeStream):
    """A stream whose cloud was too busy to send its frames one by one."""

    async def __aiter__(self) -> AsyncIterator[TokensFrame]:
        position, frames = len(self.token_ids), [frame async for frame in super().__aiter__()]
        yield TokensFrame(position=position, token_ids=[token for frame in frames for token in frame.token_ids])


async def test_a_single_frame_of_many_steps_teaches_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fakes, "FakeStream", MergedStream)
    estimates, request = Estimates(), DecodingRequest(LONG, 40, GREEDY, CONTINUOUS)
    pipeline = Pipeline(request, FakeDrafter(cloud_model), FakeVerifier(), estimates)
    ids = [token async for chunk in pipeline.run() for token in chunk.token_ids]
    assert ids == answer_of(cloud_model, LONG, 40)
    assert pipeline.answer.report.cloud_steps > 1
    assert not estimates.verify.measured
    assert estimates.gains[VerificationMode.CONTINUOUS].value == 1


async def test_drafts_for_a_stream_begin_after_its_newest_token() -> None:
    verifier = FakeVerifier()
    await answer(LONG, CONTINUOUS, FakeDrafter(cloud_model), verifier)
    (stream,) = verifier.streams
    assert len(stream.drafts) > 2
    whole = LONG + answer_of(cloud_model, LONG, 80)
    for position, draft in stream.drafts:
        assert draft == whole[position : position + len(draft)]
    assert [position for position, _ in stream.drafts] == sorted(position for position, _ in stream.drafts)


def test_a_guess_keeps_what_the_answer_confirms_and_drops_what_it_contradicts() -> None:
    guess, estimates = Continuation(), Estimates()
    text = AnswerEstimates(estimates)
    guess.extend(Draft([1, 2, 3, 4], [1.0] * 4, [0.9] * 4, False, 1.0))
    guess.follow([1, 2], estimates, text)
    assert (guess.position, guess.token_ids) == (2, [3, 4])
    guess.follow([1, 2, 3, 9], estimates, text)
    assert (guess.position, guess.token_ids, guess.confidences) == (4, [], [])
    guess.extend(Draft([5], [1.0], [0.9], False, 1.0))
    guess.follow([1, 2, 3, 9, 5, 6], estimates, text)
    assert (guess.position, guess.token_ids) == (6, [])
