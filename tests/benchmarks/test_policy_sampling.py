"""The formulas of acceptance agree with drawing, and none is above that of rejection sampling from the whole draft."""

import numpy as np
import pytest

from benchmarks.policy.sampling import coupled, drawn, greedy, sparse, tempered


@pytest.mark.parametrize("seed", range(5))
def test_the_formulas_agree_with_a_million_draws(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=6) * 2
    p, q = tempered(logits, 0.8), tempered(logits + rng.normal(size=6), 0.8)
    noise = rng.gumbel(size=(1_000_000, 6))
    mine, theirs = (noise + np.log(q)).argmax(axis=1), (noise + np.log(p)).argmax(axis=1)
    assert coupled(p, q) == pytest.approx((mine == theirs).mean(), abs=0.005)
    assert drawn(p, q) == pytest.approx((rng.random(1_000_000) < (p / q)[mine]).mean(), abs=0.005)
    assert greedy(p, q) == pytest.approx((theirs == q.argmax()).mean(), abs=0.005)


@pytest.mark.parametrize("seed", range(20))
def test_drawing_from_the_whole_draft_is_accepted_most_often(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = (tempered(rng.normal(size=40) * 3, 1.0) for _ in range(2))
    assert coupled(p, q) <= drawn(p, q) + 1e-9
    assert sparse(p, q, 40) == pytest.approx(drawn(p, q))
    assert coupled(p, p) == pytest.approx(drawn(p, p)) == pytest.approx(1.0)
