"""What was saved beside the cloud alone: steps, and money at the config's prices."""

from datetime import date

import pytest

from common.config_schema import PricesConfig
from common.types import Collaboration, Provenance
from edge.savings import Savings

PRICES = PricesConfig(prompt=1e6, completion=3e6)


def answer(*, cloud_calls: int = 0, drafted: int = 0, cloud_steps: int = 0, **tokens: int) -> Collaboration:
    counts = {str(source): tokens.get(source, 0) for source in Provenance}
    return Collaboration(tokens=counts, drafted=drafted, cloud_steps=cloud_steps, cloud_calls=cloud_calls)


def test_an_answer_of_the_edge_alone_saves_all_that_the_cloud_alone_would_have_cost() -> None:
    savings = Savings(PRICES)
    savings.record(answer(edge=10), prompt_tokens=5)
    row = savings.stats()["since_start"]
    assert row["money"] == row["money_alone"] == 5 * 1 + 10 * 3
    assert row["steps_saved"] == 10


def test_an_answer_of_the_cloud_alone_saves_nothing() -> None:
    savings = Savings(PRICES)
    savings.record(answer(cloud=10, cloud_calls=1, cloud_steps=10), prompt_tokens=5)
    row = savings.stats()["since_start"]
    assert (row["money"], row["steps_saved"]) == (0, 0)


def test_drafts_are_priced_as_what_is_read_also_those_that_are_rejected() -> None:
    savings = Savings(PRICES)
    savings.record(answer(accepted=6, recovered=4, drafted=9, cloud_calls=4, cloud_steps=4), prompt_tokens=5)
    row = savings.stats()["since_start"]
    assert row["money_alone"] == 5 + 30 and row["money"] == pytest.approx(35 - (5 + 9 + 4 * 3))
    assert row["steps_saved"] == 6


def test_the_day_begins_anew_at_midnight_and_the_start_does_not() -> None:
    days = [date(2026, 1, 1)]
    savings = Savings(PRICES, lambda: days[-1])
    savings.record(answer(edge=10), 5)
    days.append(date(2026, 1, 2))
    assert savings.stats()["today"]["answers"] == 0
    savings.record(answer(edge=1), 5)
    stats = savings.stats()
    assert (stats["today"]["answer_tokens"], stats["since_start"]["answer_tokens"]) == (1, 11)


def test_without_prices_there_is_no_money() -> None:
    savings = Savings(PricesConfig())
    savings.record(answer(edge=10), 5)
    assert savings.stats()["today"]["money"] is None
