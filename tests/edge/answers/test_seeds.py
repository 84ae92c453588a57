"""A user's seed means the same in every mode: any 64-bit integer is taken, and -1 is no seed."""

from typing import Any

import msgspec
import pytest

from benchmarks.fake_cloud import FakeCloud
from cloud.verify import validation
from cloud.verify.round import VerifyRound, vllm_params
from common.http.client import HTTPClient
from common.sampling import SEEDS, Sampling
from edge.llama.sampling import uniforms
from tests.edge.answers.test_context_limits import ASK, MODES

TAKEN = [0, 7, -1, -2, 2**31, 2**63 - 1, -(2**63)]
EVERYWHERE = {**MODES, "edge only": {"mode": "edge_only"}}


@pytest.mark.parametrize("fields", EVERYWHERE.values(), ids=EVERYWHERE)
async def test_a_seed_is_taken_in_every_mode_and_the_cloud_is_sent_one_that_it_takes(
    edge: HTTPClient, fake: FakeCloud, fields: dict[str, Any]
) -> None:
    for seed in TAKEN:
        body = ASK | {"temperature": 1.0, "max_tokens": 3, "n": 2, "seed": seed} | fields
        assert (await edge.post("/v1/completions", body, dict))["usage"]["completion_tokens"]
    sent = [asked.sampling for asked in [*fake.asked, *fake.starts]]
    assert all(sampling.seed is None or 0 <= sampling.seed < SEEDS for sampling in sent)


@pytest.mark.parametrize("seed", TAKEN)
def test_every_engine_draws_with_every_seed_and_minus_one_is_none(seed: int) -> None:
    given = msgspec.json.decode(b'{"temperature": 1.0, "seed": %d}' % seed, type=Sampling)
    assert given == Sampling(temperature=1.0, seed=seed)
    validation.check_sampling(given)
    assert (vllm_params(VerifyRound([5], [], given)).seed is None) == (seed == -1)
    repeated = (uniforms(given, 3, 1) == uniforms(given, 3, 1)).all()
    assert repeated == (seed != -1)


def test_different_seeds_stay_different() -> None:
    kept = [Sampling(seed=seed).seed for seed in TAKEN]
    assert len({*kept}) == len(kept) - 1, "0 and the least integer agree modulo 2**63"
