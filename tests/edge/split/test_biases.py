"""Penalties and biases on a split model: at an exit and in the cloud they are the same."""

from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest
from msgspec.structs import replace as changed

from common.decoding.request import DecodingRequest
from common.types import Sampling
from edge.llama.sampling import biased, penalties
from edge.split.biases import penalties_as_biases
from edge.split.engine import EdgeInferenceEngine
from edge.split.jobs import ExitPrediction
from tests.support.split.fake_split_cloud import FakeSplitCloud
from tests.support.split.split_answers import NEVER

PENALIZED = Sampling(
    temperature=0.7, seed=5, presence_penalty=0.8, frequency_penalty=0.9, logit_bias=((7, 2.5), (9, -3))
)


def test_a_penalty_is_a_bias_of_the_tokens_of_the_answer() -> None:
    tokens = [5, 7, 7, 11, 7, 9, 11]
    sampling = changed(PENALIZED, prompt_tokens=2)
    told = penalties_as_biases(sampling, tokens)
    assert (told.presence_penalty, told.frequency_penalty, told.temperature) == (0, 0, 0.7)
    logits = np.random.default_rng(1).normal(size=20).astype(np.float32)
    expected = biased(logits, sampling.logit_bias)
    applied = penalties(sampling, tokens)
    assert applied is not None
    applied.apply(expected)
    np.testing.assert_allclose(biased(logits, told.logit_bias), expected, atol=1e-6)
    assert penalties_as_biases(Sampling(seed=5), tokens) == Sampling(seed=5)


def question(engine: EdgeInferenceEngine) -> list[int]:
    return engine.segments.tokenize("<|user|>Sort 31, 7, 64.<|assistant|>", parse_special=True)


async def drawn(
    engine: EdgeInferenceEngine, ids: list[int], sampling: Sampling, tokens: int = 1
) -> list[ExitPrediction]:
    """What the first exit predicts in a row."""
    async with (
        engine.segments.sequence(len(ids), sampling) as sequence,
        aclosing(sequence.draw(ids, tokens, lambda _: True)) as parts,
    ):
        return [prediction async for part in parts for prediction in part]


async def test_a_run_of_an_exit_is_penalized_token_by_token(engine: EdgeInferenceEngine) -> None:
    ids, endless = question(engine), tuple((token, -100.0) for token in range(4))
    plain = Sampling(temperature=1.0, seed=5, logit_bias=endless)
    sampling = changed(plain, presence_penalty=2.0, frequency_penalty=2.0, prompt_tokens=len(ids))
    run = [prediction.token_id for prediction in await drawn(engine, ids, sampling, 20)]
    committed = list(ids)
    for _ in run:
        told = penalties_as_biases(sampling, committed)
        committed += [prediction.token_id for prediction in await drawn(engine, committed, told)]
    assert committed[len(ids) :] == run
    assert [prediction.token_id for prediction in await drawn(engine, ids, plain, 20)] != run


async def test_an_exit_is_confident_of_what_the_biases_leave(engine: EdgeInferenceEngine) -> None:
    """Else a token that is forbidden would be replaced by one of which the exit knows nothing."""
    ids = question(engine)
    (plain,) = await drawn(engine, ids, Sampling())
    assert [plain] == await drawn(engine, ids, Sampling(logit_bias=((0, 0.0),)))
    (other,) = await drawn(engine, ids, Sampling(logit_bias=((plain.token_id, -100.0),)))
    assert other.token_id != plain.token_id and other.confidence != pytest.approx(plain.confidence, abs=1e-3)


@pytest.mark.usefixtures("turns")
async def test_the_cloud_is_told_the_penalties_of_the_tokens_that_it_has_not_seen(
    engine: EdgeInferenceEngine, cloud: FakeSplitCloud
) -> None:
    ids = question(engine)
    sampling = Sampling(temperature=5.0, seed=4, frequency_penalty=1.0, prompt_tokens=len(ids))
    request = DecodingRequest(ids, 20, sampling, replace(engine.plan(), exits=(0.9, NEVER)))
    async with engine.answer(request) as split, aclosing(split.run()) as running:
        async for _ in running:
            pass
    committed = split.answer.committed
    assert len(cloud.asked) > 3
    for position, asked in zip(cloud.asked, cloud.samplings, strict=True):
        assert asked == penalties_as_biases(sampling, committed[:position])
        assert sum(bias for _, bias in asked.logit_bias) == len(ids) - position
