"""The token bucket: a minute's worth at once, the rate after that, and waits that are as long as they have to be."""

import random

import pytest

from edge.tenants.token_bucket import TokenBucket

LIMIT = 60


def test_no_minute_gives_more_than_a_full_bucket_and_what_it_gains_meanwhile() -> None:
    draw, bucket, now = random.Random(1), TokenBucket(LIMIT, 0.0), 0.0
    taken: list[tuple[float, int]] = []
    for _ in range(2000):
        now += draw.expovariate(2.0)
        amount = draw.randint(1, 5)
        if bucket.seconds_until(amount, LIMIT, now) == 0:
            bucket = bucket.taken(amount, LIMIT, now)
            taken.append((now, amount))
    minutes = [sum(n for at, n in taken if begin <= at < begin + 60) for begin, _ in taken]
    assert max(minutes) <= 2 * LIMIT + 1
    assert sum(n for _, n in taken) >= LIMIT * now / 60 * 0.95, "what is asked for is far more than the rate"


@pytest.mark.parametrize(
    ("level", "amount", "seconds"), [(60, 1, 0), (0, 1, 1), (-30, 1, 31), (10, 30, 20), (0, 90, 60)]
)
def test_the_wait_is_as_long_as_it_has_to_be(level: float, amount: int, seconds: float) -> None:
    bucket = TokenBucket(level, 5.0)
    assert bucket.seconds_until(amount, LIMIT, 5.0) == pytest.approx(seconds, abs=1e-5)
    assert bucket.seconds_until(amount, LIMIT, 5.0 + seconds) == 0
    assert seconds == 0 or bucket.seconds_until(amount, LIMIT, 5.0 + seconds - 0.1) > 0


def test_what_is_more_than_the_bucket_holds_leaves_a_debt_and_the_rate_is_kept() -> None:
    bucket = TokenBucket(LIMIT, 0.0).taken(3 * LIMIT, LIMIT, 0.0)
    assert bucket.level == -2 * LIMIT
    assert bucket.seconds_until(1, LIMIT, 0.0) == pytest.approx(121, abs=1e-5)
    assert bucket.refilled(LIMIT, 1e6).level == LIMIT, "idle time is saved up for one minute only"
