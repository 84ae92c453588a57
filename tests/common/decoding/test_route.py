"""Mode route: one side answers the whole request, and nothing is computed twice or mixed."""

from dataclasses import replace

import pytest

from common.decoding.answer import Chunk
from common.decoding.estimates import Estimates
from common.decoding.pipeline import Pipeline
from common.decoding.policy import Plan
from common.decoding.request import DecodingRequest
from common.errors import EndpointError
from common.routing import features
from common.routing.router import Router, Routing
from common.types import GREEDY, Mode, Provenance
from tests.common.decoding.test_pipeline import LONG, PROMPTS
from tests.support.fakes import FakeDrafter, FakeVerifier, answer_of, cloud_model, erring_model
from tests.support.routing.routers import blind, doubtful

EDGE = erring_model(2)
"""The edge's model: its answer is another one than the cloud's."""


def plan_of(router: Router, fallback: bool = True) -> Plan:
    return Plan(mode=Mode.ROUTE, fallback=fallback, routing=Routing(router, 0.5, features.of_prompt("What?", 3)))


async def routed(
    plan: Plan, drafter: FakeDrafter, verifier: FakeVerifier, prompt: list[int] = LONG, max_tokens: int = 40
) -> tuple[list[Chunk], Pipeline]:
    pipeline = Pipeline(DecodingRequest(prompt, max_tokens, GREEDY, plan), drafter, verifier)
    return [chunk async for chunk in pipeline.run()], pipeline


def ids_of(chunks: list[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


@pytest.mark.parametrize("tokens", [1, 3, 64])
@pytest.mark.parametrize("prompt", PROMPTS[:8])
async def test_a_confident_edge_gives_its_whole_answer_and_computes_nothing_twice(
    tokens: int, prompt: list[int]
) -> None:
    drafter, verifier = FakeDrafter(EDGE, lambda _: 0.9), FakeVerifier()
    chunks, pipeline = await routed(plan_of(doubtful(tokens)), drafter, verifier, prompt)
    answer, report = ids_of(chunks), pipeline.answer.report
    assert answer == answer_of(EDGE, prompt, 40)
    assert report.edge_drawn == len(answer)
    assert report.edge_wasted == verifier.traffic.calls == 0
    assert {chunk.provenance for chunk in chunks} == {Provenance.EDGE}
    assert (report.mode, report.routed_to, report.lossless) == ("route", "edge", False)
    assert report.route_score == pytest.approx(0.1)


@pytest.mark.parametrize("prompt", PROMPTS[:8])
async def test_what_a_doubtful_edge_has_drawn_is_not_in_the_answer_which_is_the_clouds_alone(prompt: list[int]) -> None:
    drafter, verifier = FakeDrafter(EDGE, lambda _: 0.1), FakeVerifier()
    chunks, pipeline = await routed(plan_of(doubtful(3)), drafter, verifier, prompt)
    alone, _ = await routed(Plan(mode=Mode.CLOUD_ONLY), FakeDrafter(EDGE), FakeVerifier(), prompt)
    report = pipeline.answer.report
    assert ids_of(chunks) == ids_of(alone) == answer_of(cloud_model, prompt, 40)
    assert {chunk.provenance for chunk in chunks} == {Provenance.CLOUD}
    assert (report.mode, report.routed_to, report.lossless) == ("route", "cloud", True)
    assert (drafter.calls, report.edge_wasted, report.drafted) == ([3], report.edge_drawn, 0)


@pytest.mark.parametrize("confidence", [0.1, 0.9])
async def test_what_the_edge_holds_is_given_back_as_soon_as_the_cloud_has_the_answer(confidence: float) -> None:
    released = []

    async def release() -> None:
        released.append(len(verifier.streams))

    verifier = FakeVerifier()
    request = DecodingRequest(LONG, 40, GREEDY, plan_of(doubtful()))
    pipeline = Pipeline(request, FakeDrafter(EDGE, lambda _: confidence), verifier, release=release)
    assert [chunk async for chunk in pipeline.run()]
    assert released == ([0] if confidence < 0.5 else [])


@pytest.mark.parametrize(("confidence", "lost", "active"), [(0.9, False, 0), (0.1, False, 1), (0.1, True, 0)])
async def test_an_answer_that_the_edge_goes_on_with_alone_is_no_active_one_of_the_cloud(
    confidence: float, lost: bool, active: int
) -> None:
    estimates, verifier = Estimates(), FakeVerifier(lost_after=0 if lost else 10_000)
    request = DecodingRequest(LONG, 40, GREEDY, plan_of(doubtful()))
    chunks = Pipeline(request, FakeDrafter(EDGE, lambda _: confidence), verifier, estimates).run()
    seen = [estimates.active async for _ in chunks]
    assert set(seen) == {active}
    assert estimates.active == 0


async def test_nothing_is_shown_before_the_router_has_decided() -> None:
    drafter = FakeDrafter(EDGE, lambda _: 0.9)
    pipeline = Pipeline(DecodingRequest(LONG, 40, GREEDY, plan_of(doubtful(5))), drafter, FakeVerifier())
    first = await anext(pipeline.run())
    assert (drafter.calls, len(first.token_ids)) == ([5], 5)


@pytest.mark.parametrize("to_cloud", [False, True])
async def test_a_router_that_needs_no_tokens_has_the_edge_draw_none_for_the_cloud(to_cloud: bool) -> None:
    drafter = FakeDrafter(EDGE, lambda _: 0.5)
    chunks, pipeline = await routed(plan_of(blind(to_cloud)), drafter, FakeVerifier())
    assert ids_of(chunks) == answer_of(cloud_model if to_cloud else EDGE, LONG, 40)
    assert pipeline.answer.report.edge_drawn == (0 if to_cloud else len(ids_of(chunks)))


@pytest.mark.parametrize("confidence", [0.1, 0.9])
async def test_what_follows_a_thought_comes_from_the_same_side_without_asking_the_router_again(
    confidence: float,
) -> None:
    plan = plan_of(doubtful())
    first, begun = await routed(plan, FakeDrafter(EDGE, lambda _: confidence), FakeVerifier(), max_tokens=6)
    plan = replace(plan, routing=begun.answer.plan.routing)
    drafter = FakeDrafter(EDGE, lambda _: 1 - confidence)
    prompt = [*LONG, *ids_of(first)]
    rest, pipeline = await routed(plan, drafter, FakeVerifier(), prompt)
    assert pipeline.answer.report.routed_to == begun.answer.report.routed_to
    assert ids_of(rest) == answer_of(cloud_model if confidence < 0.5 else EDGE, prompt, 40)
    assert pipeline.answer.report.edge_wasted == 0


@pytest.mark.parametrize("tokens", [0, 3])
async def test_the_edge_answers_where_the_cloud_is_lost_and_says_so(tokens: int) -> None:
    router = doubtful(tokens) if tokens else blind(score_is_high=True)
    chunks, pipeline = await routed(plan_of(router), FakeDrafter(EDGE, lambda _: 0.1), FakeVerifier(lost_after=0))
    report = pipeline.answer.report
    assert ids_of(chunks) == answer_of(EDGE, LONG, 40)
    assert (report.routed_to, report.degraded, report.lossless) == ("cloud", "the cloud is lost", False)


async def test_a_cloud_lost_within_its_answer_is_followed_by_the_edge() -> None:
    verifier = FakeVerifier(stream_lost_after=4, lost_after=1)
    chunks, pipeline = await routed(plan_of(doubtful()), FakeDrafter(EDGE, lambda _: 0.1), verifier)
    clouds = [token for chunk in chunks if chunk.provenance is Provenance.CLOUD for token in chunk.token_ids]
    assert clouds == answer_of(cloud_model, LONG, len(clouds))
    assert ids_of(chunks)[len(clouds) :] == answer_of(EDGE, [*LONG, *clouds], 40 - len(clouds))
    assert pipeline.answer.report.degraded


async def test_without_a_fallback_a_lost_cloud_is_an_error() -> None:
    with pytest.raises(EndpointError):
        await routed(plan_of(doubtful(), fallback=False), FakeDrafter(EDGE, lambda _: 0.1), FakeVerifier(lost_after=0))


async def test_the_cloud_answers_where_the_edge_can_draw_nothing() -> None:
    chunks, pipeline = await routed(plan_of(doubtful()), FakeDrafter(EDGE, context=2), FakeVerifier())
    assert ids_of(chunks) == answer_of(cloud_model, LONG, 40)
    assert pipeline.answer.report.route_score is None
