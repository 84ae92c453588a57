"""The pipeline: what it commits, under every plan."""

import itertools
from collections.abc import Sequence

import msgspec
import pytest

from common.decoding.pipeline import Pipeline
from common.decoding.policy import Gate, Plan
from common.decoding.request import DecodingRequest
from common.errors import GrammarError
from common.grammar.spec import GrammarKind, GrammarSpec
from common.types import GREEDY, NEVER, Draft, Mode, Provenance, Sampling, StopRule, VerificationMode
from tests.support.fakes import END, FakeDrafter, FakeVerifier, Model, answer_of, cloud_model, erring_model

PROMPTS = [[p, p + 3, 2 * p] for p in range(1, 40)]
LONG = next(p for p in PROMPTS if len(answer_of(cloud_model, p, 40)) > 20)
"""A prompt with a long answer."""
LOSSLESS = Plan(use_confidence_check=False)


async def answer(
    prompt: Sequence[int], plan: Plan, drafter: FakeDrafter, verifier: FakeVerifier, max_tokens: int = 40
) -> tuple[list[int], Pipeline]:
    pipeline = Pipeline(DecodingRequest(prompt, max_tokens, GREEDY, plan), drafter, verifier)
    ids = [token async for chunk in pipeline.run() for token in chunk.token_ids]
    assert ids == pipeline.answer.committed[len(prompt) :]
    assert sum(pipeline.answer.report.tokens.values()) == len(ids)
    return ids, pipeline


@pytest.mark.parametrize("length", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("model", [cloud_model, erring_model(2), erring_model(5), lambda ids: 1])
async def test_lossless_output_is_the_clouds_own(length: int, model: Model) -> None:
    plan = Plan(use_confidence_check=False, max_draft_tokens=length)
    for prompt, max_tokens in itertools.product(PROMPTS, (1, 2, 17, 40)):
        ids, pipeline = await answer(prompt, plan, FakeDrafter(model), FakeVerifier(), max_tokens)
        assert ids == answer_of(cloud_model, prompt, max_tokens)
        assert pipeline.answer.finish_reason == ("stop" if ids[-1] == END else "length")
        assert pipeline.answer.report.lossless


async def test_provenance_tells_accepted_recovered_and_bonus_tokens_apart() -> None:
    _, right = await answer(LONG, LOSSLESS, FakeDrafter(cloud_model), FakeVerifier())
    assert right.answer.report.tokens[Provenance.RECOVERED] == 0
    assert right.answer.report.acceptance_rate == 1.0
    _, wrong = await answer(LONG, LOSSLESS, FakeDrafter(lambda ids: 100), FakeVerifier())
    tokens = wrong.answer.report.tokens
    assert tokens[Provenance.ACCEPTED] == tokens[Provenance.BONUS] == 0
    assert tokens[Provenance.RECOVERED] > 0


@pytest.mark.parametrize("mode", [VerificationMode.ROUNDS, VerificationMode.CONTINUOUS])
@pytest.mark.parametrize("gated", [False, True])
async def test_each_token_that_a_cloud_saw_names_its_round(mode: VerificationMode, gated: bool) -> None:
    plan = Plan(use_confidence_check=gated, verification_mode=mode, max_draft_tokens=4)
    drafter = FakeDrafter(erring_model(3), confidence=lambda position: 0.1 if position % 5 == 0 else 0.99)
    pipeline = Pipeline(DecodingRequest(LONG, 40, GREEDY, plan), drafter, FakeVerifier())
    chunks = [chunk async for chunk in pipeline.run()]
    assert all((chunk.round is None) == (chunk.provenance is Provenance.EDGE) for chunk in chunks)
    rounds = [chunk.round for chunk in chunks if chunk.round is not None]
    assert rounds == sorted(rounds)
    assert set(rounds) == set(range(1, pipeline.answer.report.rounds + 1))


async def test_a_gated_answer_commits_confident_tokens_and_verifies_from_the_first_one_below_the_threshold() -> None:
    drafter = FakeDrafter(cloud_model, confidence=lambda position: 0.1 if position % 5 == 0 else 0.99)
    verifier = FakeVerifier()
    ids, pipeline = await answer(LONG, Plan(gate=Gate(0.8, 0.0)), drafter, verifier, max_tokens=10)
    assert pipeline.answer.committed[3:5] == ids[:2]
    assert verifier.asked[0] == answer_of(cloud_model, [*LONG, *ids[:2]], 8)[: len(verifier.asked[0])]
    assert pipeline.answer.report.tokens[Provenance.EDGE] >= 2
    assert not pipeline.answer.report.lossless


async def test_after_the_gate_a_gated_answer_has_no_more_verified_than_pays() -> None:
    """The rest of a draft costs the cloud a token each, and the edge keeps confident ones by itself."""
    sent = {}
    for name, stop in (("measured", None), ("to its end", NEVER)):
        drafter, verifier = FakeDrafter(erring_model(4), lambda n: 0.99 if n % 4 else 0.3), FakeVerifier()
        ids, _ = await answer(LONG, Plan(draft_stop=stop), drafter, verifier)
        assert ids == answer_of(cloud_model, LONG, 40)
        sent[name] = sum(map(len, verifier.asked))
    assert sent["measured"] < sent["to its end"] / 2


async def test_a_gated_answer_of_confident_tokens_never_asks_the_cloud() -> None:
    verifier = FakeVerifier()
    ids, _ = await answer(LONG, Plan(), FakeDrafter(erring_model(3)), verifier)
    assert verifier.traffic.calls == 0
    assert ids == answer_of(erring_model(3), LONG, 40)


async def test_without_draft_verify_a_token_below_the_threshold_makes_the_cloud_generate() -> None:
    verifier = FakeVerifier()
    plan = Plan(use_draft_verify=False, stretch_tokens=3)
    ids, pipeline = await answer(LONG, plan, FakeDrafter(erring_model(2), lambda _: 0.0), verifier)
    assert set(map(tuple, verifier.asked)) == {()}
    assert ids == answer_of(cloud_model, LONG, 40)
    assert pipeline.answer.report.tokens[Provenance.CLOUD] == len(ids)


@pytest.mark.parametrize("plan", [Plan(use_confidence_check=False, use_draft_verify=False), Plan(mode=Mode.EDGE_ONLY)])
async def test_edge_alone_never_asks_the_cloud_whatever_its_confidence(plan: Plan) -> None:
    verifier = FakeVerifier()
    ids, _ = await answer(LONG, plan, FakeDrafter(erring_model(2), lambda _: 0.0), verifier)
    assert verifier.traffic.calls == 0
    assert ids == answer_of(erring_model(2), LONG, 40)


async def test_cloud_alone_never_drafts() -> None:
    drafter = FakeDrafter(erring_model(2))
    ids, pipeline = await answer(LONG, Plan(mode=Mode.CLOUD_ONLY), drafter, FakeVerifier())
    assert drafter.calls == []
    assert ids == answer_of(cloud_model, LONG, 40)
    assert pipeline.answer.report.lossless


@pytest.mark.parametrize("lost_after", [0, 1, 3])
async def test_a_lost_cloud_leaves_no_gap_and_no_repetition_and_is_reported(lost_after: int) -> None:
    drafter, verifier = FakeDrafter(erring_model(2)), FakeVerifier(lost_after)
    plan = Plan(use_confidence_check=False, max_draft_tokens=2)
    ids, pipeline = await answer(LONG, plan, drafter, verifier)
    report = pipeline.answer.report
    verified = len(ids) - report.tokens[Provenance.EDGE]
    assert ids[:verified] == answer_of(cloud_model, LONG, 40)[:verified]
    assert ids[verified:] == answer_of(erring_model(2), [*LONG, *ids[:verified]], 40 - verified)
    assert report.degraded == "the cloud is lost"
    assert not report.lossless
    assert verifier.traffic.calls == lost_after + 1


async def test_an_edge_whose_context_is_full_ends_the_answer() -> None:
    ids, pipeline = await answer(LONG, Plan(mode=Mode.EDGE_ONLY), FakeDrafter(lambda _: 9, context=8), FakeVerifier())
    assert ids == [9] * 5
    assert pipeline.answer.finish_reason == "length"


WITH_THE_CLOUD = {
    "lossless rounds": Plan(use_confidence_check=False, verification_mode=VerificationMode.ROUNDS),
    "continuous": Plan(use_confidence_check=False, verification_mode=VerificationMode.CONTINUOUS),
    "gated": Plan(gate=Gate(0.8, 0.0)),
    "without F2": Plan(use_draft_verify=False, gate=Gate(0.8, 0.0)),
    "cloud only": Plan(mode=Mode.CLOUD_ONLY),
}


@pytest.mark.parametrize("plan", WITH_THE_CLOUD.values(), ids=WITH_THE_CLOUD)
async def test_an_answer_that_fills_the_clouds_context_ends_with_length(plan: Plan) -> None:
    for room in range(1, 12):
        drafter = FakeDrafter(cloud_model, confidence=lambda position: 0.5)
        ids, pipeline = await answer(LONG, plan, drafter, FakeVerifier(context=len(LONG) + room))
        assert ids == answer_of(cloud_model, LONG, room)
        assert pipeline.answer.finish_reason == "length"
        assert pipeline.answer.report.degraded is None


@pytest.mark.parametrize("plan", WITH_THE_CLOUD.values(), ids=WITH_THE_CLOUD)
async def test_an_end_token_at_the_end_of_the_context_is_a_stop(plan: Plan) -> None:
    ended = next(p for p in PROMPTS if answer_of(cloud_model, p, 40)[-1] == END)
    truth = answer_of(cloud_model, ended, 40)
    drafter = FakeDrafter(cloud_model, confidence=lambda position: 0.5)
    ids, pipeline = await answer(ended, plan, drafter, FakeVerifier(context=len(ended) + len(truth)))
    assert (ids, pipeline.answer.finish_reason) == (truth, "stop")


async def test_the_report_is_complete_when_the_reader_stops_early() -> None:
    pipeline = Pipeline(DecodingRequest(LONG, 40, GREEDY, LOSSLESS), FakeDrafter(cloud_model), FakeVerifier())
    chunks = pipeline.run()
    await anext(chunks)
    await chunks.aclose()
    assert pipeline.answer.report.cloud_calls == 1
    assert pipeline.answer.report.acceptance_rate == 1.0


@pytest.mark.parametrize("asks_cloud", [True, False])
async def test_drafts_for_the_cloud_are_greedy_and_otherwise_sampled_as_the_answer_is(asks_cloud: bool) -> None:
    seen: list[Sampling] = []

    class SamplingRecorder(FakeDrafter):
        async def draft(
            self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop: StopRule = NEVER
        ) -> Draft:
            seen.append(sampling)
            return await super().draft(token_ids, limit, sampling)

    wanted = Sampling(
        temperature=0.7, seed=3, presence_penalty=1.0, grammar=GrammarSpec(GrammarKind.JSON, "{}"), prompt_tokens=2
    )
    plan = Plan(use_confidence_check=asks_cloud, use_draft_verify=asks_cloud)
    pipeline = Pipeline(DecodingRequest([1, 2], 20, wanted, plan), SamplingRecorder(cloud_model), FakeVerifier())
    assert [chunk async for chunk in pipeline.run()]
    expected = msgspec.structs.replace(wanted, temperature=0.0) if asks_cloud else wanted
    assert set(seen) == {expected}


class StrictDrafter(FakeDrafter):
    """Its grammar follows no answer of more than `longest` tokens, prompt included."""

    longest: int = 0

    async def draft(self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop: StopRule = NEVER) -> Draft:
        if len(token_ids) > self.longest:
            raise GrammarError("the answer so far does not match")
        return await super().draft(token_ids, limit, sampling)


@pytest.mark.parametrize("way", VerificationMode)
@pytest.mark.parametrize("gated", [True, False])
async def test_an_edge_whose_grammar_cannot_follow_neither_drafts_nor_commits(
    gated: bool, way: VerificationMode
) -> None:
    plan = Plan(use_confidence_check=gated, verification_mode=way, draft_ahead=False)
    ids, pipeline = await answer(LONG, plan, StrictDrafter(cloud_model), FakeVerifier(), 30)
    assert ids == answer_of(cloud_model, LONG, 30)
    report = pipeline.answer.report
    assert (report.tokens["edge"], report.edge_drawn, report.degraded) == (0, 0, None)


@pytest.mark.parametrize("way", VerificationMode)
async def test_an_answer_goes_on_alone_only_where_its_grammar_follows(way: VerificationMode) -> None:
    plan, drafter = Plan(use_confidence_check=False, verification_mode=way), StrictDrafter(cloud_model)
    drafter.longest = 10_000
    ids, pipeline = await answer(LONG, plan, drafter, FakeVerifier(lost_after=1, stream_lost_after=2), 30)
    assert pipeline.answer.report.degraded and ids == answer_of(cloud_model, LONG, 30)
    drafter.longest = len(LONG)
    with pytest.raises(GrammarError):
        await answer(LONG, plan, drafter, FakeVerifier(lost_after=1, stream_lost_after=2), 30)
