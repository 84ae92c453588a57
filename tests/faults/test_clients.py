"""The clients of the fault tests see each kind of wrong answer: the negative control of all of them."""

from typing import Any

import pytest

from tests.faults.clients import Clients

TRUTH = [5, 6, 7, 8]


def checked(ids: list[int], sources: list[str], degraded: str | None) -> list[str]:
    clients = Clients(pair=Any, truth={"question": TRUTH})  # type: ignore[arg-type]
    tokens = [{"token_id": token, "source": source} for token, source in zip(ids, sources, strict=True)]
    clients._check("question", tokens, {"degraded": degraded})
    return clients.wrong


def test_right_answers_are_right() -> None:
    assert checked(TRUTH, ["accepted", "bonus", "cloud", "cloud"], None) == []
    assert checked([5, 6, 1, 2], ["accepted", "bonus", "edge", "edge"], "the cloud is lost") == []


@pytest.mark.parametrize(
    ("ids", "sources", "degraded"),
    [
        ([5, 6, 8], ["cloud"] * 3, None),
        ([5, 6, 6, 7, 8], ["cloud"] * 5, None),
        ([5, 6, 7], ["cloud"] * 3, None),
        ([5, 7, 1], ["cloud", "cloud", "edge"], "the cloud is lost"),
        ([5, 5, 1], ["cloud", "cloud", "edge"], "the cloud is lost"),
        ([5, 1, 6], ["cloud", "edge", "cloud"], "the cloud is lost"),
    ],
    ids=[
        "lost",
        "doubled",
        "cut off",
        "lost before the cloud was",
        "doubled before it",
        "the cloud's after the edge's",
    ],
)
def test_a_token_that_is_lost_or_doubled_is_seen(ids: list[int], sources: list[str], degraded: str | None) -> None:
    assert checked(ids, sources, degraded)
