"""The session table returns the prefix that both sides hold, or reports that it does not; it is bounded."""

import pytest

from cloud.verify.sessions import SessionTable
from common.errors import PrefixUnknown
from common.protocol.prefix_hash import prefix_hash
from common.types import VerifyRequest


def request(session: str, prefix: list[int], new: list[int]) -> VerifyRequest:
    return VerifyRequest(session=session, prefix_length=len(prefix), prefix_hash=prefix_hash(prefix), new_token_ids=new)


def test_a_first_round_needs_no_prefix() -> None:
    assert SessionTable().resolve(request("a", [], [1, 2])) == [1, 2]


def test_a_held_prefix_is_continued() -> None:
    table = SessionTable()
    table.commit("a", [1, 2, 3])
    assert table.resolve(request("a", [1, 2, 3], [4, 5])) == [1, 2, 3, 4, 5]


def test_tokens_held_beyond_the_prefix_are_left_out() -> None:
    table = SessionTable()
    table.commit("a", [1, 2, 3, 4])
    assert table.resolve(request("a", [1, 2], [9])) == [1, 2, 9]
    table.commit("a", [1, 2, 9])
    assert table.bytes == 3 * 4


@pytest.mark.parametrize(
    ("session", "prefix"),
    [("b", [1, 2]), ("a", [1, 3]), ("a", [2, 1]), ("a", [1, 2, 3, 4])],
    ids=["unknown session", "other ids", "other order", "longer than held"],
)
def test_a_prefix_that_is_not_held_is_refused(session: str, prefix: list[int]) -> None:
    table = SessionTable()
    table.commit("a", [1, 2, 3])
    with pytest.raises(PrefixUnknown):
        table.resolve(request(session, prefix, [7]))


def test_the_table_returns_copies() -> None:
    table = SessionTable()
    table.commit("a", [1, 2])
    table.resolve(request("a", [1, 2], [])).append(99)
    assert table.resolve(request("a", [1, 2], [])) == [1, 2]


def test_the_least_recently_used_session_goes_first() -> None:
    table = SessionTable(max_sessions=2)
    table.commit("a", [1])
    table.commit("b", [2])
    table.resolve(request("a", [1], []))
    table.commit("c", [3])
    assert table.resolve(request("a", [1], [])) == [1]
    with pytest.raises(PrefixUnknown):
        table.resolve(request("b", [2], []))


def test_the_bytes_of_all_sessions_together_are_bounded() -> None:
    table = SessionTable(max_bytes=40)
    for number in range(8):
        table.commit(f"s{number}", [number] * 4)
        assert table.bytes <= 40
    assert len(table) == 2
    table.commit("too long", [0] * 11)
    assert (len(table), table.bytes) == (0, 0)


def test_a_session_unused_for_too_long_is_dropped() -> None:
    now = 0.0
    table = SessionTable(max_idle_seconds=10, clock=lambda: now)
    table.commit("a", [1])
    table.commit("b", [2])
    now = 8.0
    table.resolve(request("a", [1], []))
    now = 15.0
    assert table.resolve(request("a", [1], [])) == [1]
    with pytest.raises(PrefixUnknown):
        table.resolve(request("b", [2], []))
    assert (len(table), table.bytes) == (1, 4)


def test_tenants_do_not_see_each_others_sessions() -> None:
    table = SessionTable()
    table.commit("a", [1, 2], "one")
    with pytest.raises(PrefixUnknown):
        table.resolve(request("a", [1, 2], []), "two")
    table.commit("a", [3], "two")
    assert table.resolve(request("a", [1, 2], []), "one") == [1, 2]


def test_the_hash_tells_order_and_length_apart() -> None:
    hashes = [prefix_hash(ids) for ids in ([], [0], [0, 0], [1, 2], [2, 1])]
    assert len(set(hashes)) == len(hashes)
