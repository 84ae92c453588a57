"""The token that completes a stop string is found wherever the string is cut."""

import random

import pytest

from cloud.verify.stop_strings import Stop, find_stop


def decode(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def ids(text: str) -> list[int]:
    return [ord(letter) for letter in text]


@pytest.mark.parametrize("cut", range(5))
def test_a_stop_string_is_found_wherever_a_round_begins(cut: int) -> None:
    text = "one two three"
    assert find_stop(decode, ids(text[:cut]), ids(text[cut:]), ["thr", "e tw"]) == Stop(len("one tw") - cut, "e tw")


def test_a_stop_string_is_found_only_where_the_text_contains_it() -> None:
    rng = random.Random(1)
    for _ in range(200):
        text = "".join(rng.choice("ab") for _ in range(30))
        cut = rng.randrange(30)
        expected = text.find("abba", max(0, cut - 3))
        before = "abba" in text[:cut]
        found = find_stop(decode, ids(text[:cut]), ids(text[cut:]), ["abba"])
        if not before:
            assert (found.keep + cut - 4 if found else -1) == expected


def test_the_first_completed_stop_string_wins() -> None:
    assert find_stop(decode, [], ids("abcdef"), ["bcdef", "cd"]) == Stop(4, "cd")


def test_without_stop_strings_or_tokens_nothing_is_decoded() -> None:
    def never(_: list[int]) -> str:
        raise AssertionError

    assert find_stop(never, [1], [2], []) is None
    assert find_stop(never, [1], [], ["x"]) is None
