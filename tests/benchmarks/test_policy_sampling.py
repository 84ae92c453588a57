"""The formulas of acceptance agree with drawing, and none is above that of rejection sampling from the whole draft."""

import numpy as np
import pytest

from benchmarks.policy.sampling import coupled, distribution, drawn, greedy, sparse
from common.types import Sampling

DRAWS = 1_000_000


@pytest.mark.parametrize("seed", range(5))
def test_the_formulas_agree_with_a_million_draws_for_each_token(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, sampling = rng.normal(size=6) * 2, Sampling(temperature=0.8)
    p, q = distribution(logits, sampling), distribution(logits + rng.normal(size=6), sampling)
    noise = rng.gumbel(size=(DRAWS, 6))
    mine, theirs = (noise + np.log(q)).argmax(axis=1), (noise + np.log(p)).argmax(axis=1)

    def shares(tokens: np.ndarray) -> np.ndarray:
        return np.bincount(tokens, minlength=6) / DRAWS

    assert coupled(p, q) == pytest.approx(shares(mine[mine == theirs]), abs=0.003)
    assert drawn(p, q) == pytest.approx(shares(mine[rng.random(DRAWS) < (p / q)[mine]]), abs=0.003)
    assert greedy(p, q) == pytest.approx(shares(theirs[theirs == q.argmax()]), abs=0.003)


@pytest.mark.parametrize("seed", range(20))
def test_drawing_from_the_whole_draft_is_accepted_most_often(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = (distribution(rng.normal(size=40) * 3, Sampling(temperature=1.0, top_k=20)) for _ in range(2))
    assert (coupled(p, q) <= drawn(p, q) + 1e-9).all()
    assert sparse(40)(p, q) == pytest.approx(drawn(p, q))
    assert coupled(p, p) == pytest.approx(p)


def test_a_greedy_draft_is_accepted_most_often_where_only_the_edge_is_uncertain() -> None:
    certain, uncertain = np.array([1.0, 0.0]), np.array([0.6, 0.4])
    assert greedy(certain, uncertain).sum() > drawn(certain, uncertain).sum()
    assert greedy(uncertain, uncertain).sum() < drawn(uncertain, uncertain).sum()


def test_a_filtered_distribution_keeps_the_likeliest_tokens_and_adds_up_to_one() -> None:
    logits = np.log([0.5, 0.05, 0.2, 0.25])
    assert distribution(logits, Sampling(temperature=1.0)) == pytest.approx([0.5, 0.05, 0.2, 0.25])
    assert distribution(logits, Sampling(temperature=1.0, top_k=2)) == pytest.approx([2 / 3, 0, 0, 1 / 3])
    assert distribution(logits, Sampling(temperature=1.0, top_p=0.9)) == pytest.approx(
        np.array([0.5, 0, 0.2, 0.25]) / 0.95
    )
    assert distribution(logits, Sampling(temperature=0.5))[0] > 0.7
