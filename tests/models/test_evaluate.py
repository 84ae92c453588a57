"""The evaluation's replay verifier: it verifies exactly like an engine that gives these answers."""

from common.decoding.pipeline import Pipeline
from common.decoding.policy import Plan
from common.decoding.request import DecodingRequest
from common.types import GREEDY
from models.evaluate import EvaluatedQuestion, ReplayVerifier
from tests.support.fakes import FakeDrafter, FakeVerifier, answer_of, cloud_model, erring_model


async def test_replayed_rounds_are_those_of_a_real_verifier() -> None:
    plan = Plan(use_confidence_check=False, max_draft_tokens=4)
    for start in range(20):
        prompt = [start, start + 1]
        question = EvaluatedQuestion("", "", "", prompt, prompt, answer_of(cloud_model, prompt, 30))
        reports = []
        for verifier in (ReplayVerifier(question), FakeVerifier()):
            pipeline = Pipeline(DecodingRequest(prompt, 30, GREEDY, plan), FakeDrafter(erring_model(3)), verifier)
            ids = [token async for chunk in pipeline.run() for token in chunk.token_ids]
            assert ids == question.cloud_ids
            reports.append((pipeline.answer.report.drafted, pipeline.answer.report.accepted))
        assert reports[0] == reports[1]
