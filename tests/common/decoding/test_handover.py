"""Answers on clouds that verify nothing: they take over, the rest or the whole answer, and may be lost."""

from dataclasses import replace

import pytest

from common.decoding.pipeline import Pipeline
from common.decoding.policy import Gate, Handover, Plan
from common.decoding.request import DecodingRequest
from common.types import GREEDY, Provenance
from tests.support.fakes import FakeDrafter, FakeVerifier, answer_of, cloud_model, erring_model

PROMPT = next(p for p in ([p, p + 3, 2 * p] for p in range(1, 90)) if len(answer_of(cloud_model, p, 40)) == 40)
PLAN = Plan(gate=Gate(0.8, 0.0), use_draft_verify=False, max_draft_tokens=4, handover=Handover.REST)
UNSURE = 13
"""The position of the first token that fails the gate."""
EDGE = erring_model(7)


def unsure(position: int) -> float:
    return 0.1 if position == UNSURE else 0.9


async def shown(pipeline: Pipeline) -> list[tuple[int, Provenance]]:
    return [(token, chunk.provenance) async for chunk in pipeline.run() for token in chunk.token_ids]


def pipeline_of(plan: Plan, verifier: FakeVerifier, drafter: FakeDrafter | None = None) -> Pipeline:
    return Pipeline(DecodingRequest(PROMPT, 40, GREEDY, plan), drafter or FakeDrafter(EDGE, unsure), verifier)


async def test_the_cloud_goes_on_from_the_first_token_that_fails_the_gate_to_the_end() -> None:
    verifier = FakeVerifier()
    pipeline = pipeline_of(PLAN, verifier)
    tokens = await shown(pipeline)
    kept = answer_of(EDGE, PROMPT, UNSURE - len(PROMPT))
    rest = answer_of(cloud_model, [*PROMPT, *kept], 40 - len(kept))
    assert [token for token, _ in tokens] == kept + rest
    assert [source for _, source in tokens] == [Provenance.EDGE] * len(kept) + [Provenance.CLOUD] * len(rest)
    assert (len(verifier.streams), verifier.asked, verifier.streams[0].drafts) == (1, [], []), "and gets no drafts"
    assert not pipeline.answer.report.lossless


async def test_a_cloud_that_cannot_go_on_answers_from_the_beginning() -> None:
    pipeline = pipeline_of(replace(PLAN, handover=Handover.WHOLE), FakeVerifier())
    tokens = await shown(pipeline)
    assert tokens == [(token, Provenance.CLOUD) for token in answer_of(cloud_model, PROMPT, 40)]
    report = pipeline.answer.report
    assert (report.tokens[Provenance.EDGE], report.tokens[Provenance.CLOUD]) == (0, 40)
    assert report.edge_wasted == report.edge_drawn > 0


async def test_nothing_of_such_an_answer_is_shown_before_the_edge_has_completed_it() -> None:
    drafter = FakeDrafter(EDGE)
    pipeline = pipeline_of(replace(PLAN, handover=Handover.WHOLE), FakeVerifier(), drafter)
    chunks = pipeline.run()
    first = await anext(chunks)
    assert sum(drafter.calls) >= 40, "all was drafted"
    rest = [token async for chunk in chunks for token in chunk.token_ids]
    assert first.token_ids + rest == answer_of(EDGE, PROMPT, 40)
    assert pipeline.answer.report.cloud_calls == 0


@pytest.mark.parametrize("handover", list(Handover))
async def test_an_answer_whose_cloud_cannot_be_reached_is_the_edges(handover: Handover) -> None:
    pipeline = pipeline_of(replace(PLAN, handover=handover), FakeVerifier(lost_after=0))
    tokens = await shown(pipeline)
    assert [token for token, _ in tokens] == answer_of(EDGE, PROMPT, 40)
    assert pipeline.answer.report.degraded == "the cloud is lost"


@pytest.mark.parametrize("handover", list(Handover))
async def test_an_answer_whose_cloud_is_lost_in_the_middle_goes_on_from_its_last_token(handover: Handover) -> None:
    verifier = FakeVerifier(lost_after=1, stream_lost_after=5)
    pipeline = pipeline_of(replace(PLAN, handover=handover), verifier)
    tokens = await shown(pipeline)
    of_cloud = [token for token, source in tokens if source is Provenance.CLOUD]
    before = [] if handover is Handover.WHOLE else answer_of(EDGE, PROMPT, UNSURE - len(PROMPT))
    assert of_cloud == answer_of(cloud_model, [*PROMPT, *before], 5)
    assert [t for t, _ in tokens] == before + of_cloud + answer_of(EDGE, [*PROMPT, *before, *of_cloud], 40)[
        : 40 - len(before) - 5
    ]
    assert pipeline.answer.report.degraded
